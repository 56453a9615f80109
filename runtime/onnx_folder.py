"""What an ONNX folder says of its graph, in the two forms that are about.

onnxruntime-genai's builder writes `genai_config.json` beside a graph of fused operators; optimum leaves the
checkpoint's `config.json` and `generation_config.json` beside one of standard operators, or beside the three of an
encoder-decoder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ammd.errors import ArtifactError

_GRAPH = "model.onnx"
ENCODER, DECODER, NEXT = "encoder_model.onnx", "decoder_model.onnx", "decoder_with_past_model.onnx"


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxFolder:
    """Where the graph is, and what stands beside it. None where the files do not say."""

    graph: Path  # of an encoder-decoder the one that gives the first token
    vocab_size: int
    context_tokens: int | None  # that the model was made for
    kv_heads: int | None
    head_size: int | None
    shares_cache: bool  # past and present may be one buffer, which holds `context_tokens` at most
    bos_token_id: int | None
    end_token_ids: tuple[int, ...]
    start_token_id: int | None = None  # of an encoder-decoder's target


def read_onnx_folder(folder: Path) -> OnnxFolder:
    """Read the configuration of an ONNX folder.

    Raises:
        ArtifactError: It is missing or damaged, or names no graph or vocabulary.
    """
    path = folder / "genai_config.json"
    is_fused = path.is_file()
    if not is_fused:
        path = folder / "config.json"
    try:
        config = read_json(path)
        return _fused(folder, config) if is_fused else _standard(folder, config)
    except (KeyError, TypeError, ValueError) as exc:
        raise ArtifactError(
            f"`{path}` names no decoder, vocabulary or context: {exc}", path=str(folder)
        ) from exc


def has_encoder(folder: Path) -> bool:
    """Tell whether a folder's graphs are an encoder-decoder's."""
    return (folder / ENCODER).is_file()


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ArtifactError: It is missing or damaged.
    """
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise ArtifactError(f"cannot read `{path}`: {exc}", path=str(path)) from exc
    return document


def _fused(folder: Path, config: Mapping[str, Any]) -> OnnxFolder:
    model = config["model"]
    decoder = model["decoder"]
    return OnnxFolder(
        graph=folder / decoder["filename"],
        vocab_size=int(model["vocab_size"]),
        context_tokens=int(model["context_length"]),
        kv_heads=decoder.get("num_key_value_heads"),
        head_size=decoder.get("head_size"),
        shares_cache=bool(config.get("search", {}).get("past_present_share_buffer", False)),
        bos_token_id=model.get("bos_token_id"),
        end_token_ids=_ids(model.get("eos_token_id")),
    )


def _standard(folder: Path, config: Mapping[str, Any]) -> OnnxFolder:
    generation = folder / "generation_config.json"
    defaults = read_json(generation) if generation.is_file() else config
    heads = config.get("num_attention_heads") or config.get("num_heads")
    width = config.get("hidden_size")
    return OnnxFolder(
        graph=_find_graph(folder),
        vocab_size=int(config["vocab_size"]),
        context_tokens=config.get("max_position_embeddings"),
        kv_heads=config.get("num_key_value_heads") or heads,
        head_size=config.get("head_dim")
        or config.get("d_kv")
        or (width // heads if width and heads else None),
        shares_cache=False,
        bos_token_id=config.get("bos_token_id"),
        end_token_ids=_ids(defaults.get("eos_token_id")),
        start_token_id=defaults.get("decoder_start_token_id", config.get("decoder_start_token_id")),
    )


def _find_graph(folder: Path) -> Path:
    """Return `model.onnx`, an encoder-decoder's decoder, or the only graph there is."""
    graphs = sorted(folder.glob("*.onnx"))
    for name in (_GRAPH, DECODER):
        if folder / name in graphs:
            return folder / name
    if len(graphs) == 1:
        return graphs[0]
    names = ", ".join(f"`{graph.name}`" for graph in graphs)
    raise ArtifactError(
        f"`{folder}` holds several graphs and none is named {_GRAPH}: {names}",
        hint=f"keep the one that is meant, as {_GRAPH}, in a folder of its own",
        path=str(folder),
    )


def _ids(value: int | list[int] | None) -> tuple[int, ...]:
    listed = value if isinstance(value, list) else [value]
    return tuple(int(token) for token in listed if token is not None)
