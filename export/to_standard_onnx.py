"""Checkpoint to ONNX in standard operators, by optimum's exporter: a folder that plain onnxruntime runs.

The graph takes tokens, mask, positions and past keys and values, and gives logits and the longer keys and values;
attention is spelled out. That is slower than onnxruntime-genai's form, and read by every runtime and converter.

    checkpoint ── optimum ──► float32 graph, head and embedding stored once ──► float16, int8, int4
                                                    └───────────────────────────────┴──► model.ort
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from ammd.artifact import link_or_copy
from ammd.errors import ExportError

from .captured import run_module
from .checkpoint_facts import read_json
from .genai_config import end_token_ids
from .onnx_metadata import state_metadata
from .optimum_exporter import missing_exporter
from .seq2seq_exporter import GRAPHS
from .settings import OnnxSettings
from .standard_graph import GRAPH, WEIGHTS

ORT_MODEL = "model.ort"
_GENERATION = "generation_config.json"
_COPIED = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
)


def write_standard_onnx(checkpoint: Path, folder: Path, *, metadata: Mapping[str, str] | None = None) -> None:
    """Export a float32 ONNX model of standard operators with the checkpoint's configuration and tokenizer files.

    Args:
        checkpoint: A folder that transformers can load.
        folder: The folder to write; it is created.
        metadata: What the graph says of itself.

    Raises:
        ExportError: optimum is missing or does not know the architecture, or the checkpoint names no end token.
    """
    check_exporter()
    ends = end_token_ids(checkpoint)
    if not ends:
        raise ExportError(
            f"`{checkpoint}` names no end token, its ONNX model would never stop",
            hint="set eos_token_id in generation_config.json",
        )
    child = "seq2seq_exporter" if has_encoder(checkpoint) else "standard_exporter"
    with _scratch_beside(folder) as scratch:
        arguments = [str(checkpoint), str(scratch), str(folder)]
        _run(child, arguments, folder, task=f"export `{checkpoint}` to standard ONNX")
    for graph in graphs_of(checkpoint):
        state_metadata(folder / graph, metadata or {})
    for name in _COPIED:
        if (checkpoint / name).is_file():
            shutil.copyfile(checkpoint / name, folder / name)
    _write_generation_config(checkpoint, folder, ends=ends)


def quantize_standard_onnx(
    source: Path,
    folder: Path,
    *,
    precision: str,
    settings: OnnxSettings,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Make a model of another precision from one that `write_standard_onnx` wrote.

    Args:
        source: That one's folder.
        folder: The folder to write; it is created.
        precision: Of the weights: `fp16`, `int8` or `int4`.
        settings: How to quantize to int4.
        metadata: What the graph says of itself.

    Raises:
        ExportError: The weights do not fit the precision.
    """
    child, options = "standard_quantizer", [precision, settings.model_dump_json()]
    if has_encoder(source):
        child, options = "seq2seq_quantizer", []
    with _scratch_beside(folder) as scratch:
        for name in (*graphs_of(source), WEIGHTS, "config.json"):
            link_or_copy(str(source / name), str(scratch / name))
        arguments = [str(scratch), str(folder), *options]
        _run(child, arguments, folder, task=f"quantize `{source.name}` to {precision}")
    for graph in graphs_of(source):
        state_metadata(folder / graph, metadata or {})
    for name in (*_COPIED, _GENERATION):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def write_ort(folder: Path) -> None:
    """Write a model's `model.ort` beside its graph.

    Raises:
        ExportError: Its weights are more than the format holds.
    """
    _run("ort_format", [str(folder / GRAPH), str(folder / ORT_MODEL)], folder, task=f"write `{ORT_MODEL}`")


def check_exporter() -> None:
    """Refuse the `onnx-standard` schemes where they cannot be made.

    Raises:
        ExportError: optimum is not installed, or not for the transformers that is.
    """
    if fault := missing_exporter():
        raise ExportError(fault[0], hint=f"{fault[1]}, or leave the `onnx-standard` schemes out")


@contextmanager
def _scratch_beside(folder: Path) -> Iterator[Path]:
    """Give a folder on the same disk, for files as large as the model."""
    with tempfile.TemporaryDirectory(prefix="ammd-onnx-", dir=folder.parent) as scratch:
        yield Path(scratch)


def has_encoder(folder: Path) -> bool:
    """Tell whether a checkpoint or an ONNX folder is an encoder-decoder."""
    return bool(read_json(folder / "config.json").get("is_encoder_decoder"))


def graphs_of(folder: Path) -> tuple[str, ...]:
    """Return the names of the graphs that a checkpoint or an ONNX folder becomes or consists of."""
    return GRAPHS if has_encoder(folder) else (GRAPH,)


def _run(child: str, arguments: Sequence[str], folder: Path, *, task: str) -> None:
    run_module(f"ammd.export.{child}", arguments, task=task)
    if not (folder / WEIGHTS).is_file():
        raise ExportError(f"the ONNX exporter wrote no `{WEIGHTS}`", path=str(folder))


def _write_generation_config(checkpoint: Path, folder: Path, *, ends: tuple[int, ...]) -> None:
    """Copy the generation defaults, with every id that ends an answer."""
    path = checkpoint / _GENERATION
    document = (read_json(path) if path.is_file() else {}) | {"eos_token_id": list(ends)}
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    (folder / _GENERATION).write_text(text, encoding="utf-8")
