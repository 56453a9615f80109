"""Checkpoint to ONNX in standard operators, by optimum's exporter: a folder that plain onnxruntime runs.

The graph takes tokens, mask, positions and past keys and values, and gives logits and the longer keys and values;
attention is spelled out. That is slower than onnxruntime-genai's form, and read by every runtime and converter.

    checkpoint ── optimum ──► float32 graph, head and embedding stored once ──► float16, int8 or int4
                                                                          └──► model.ort
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from ammd.errors import ExportError

from .captured import run_module
from .checkpoint_facts import read_json
from .genai_config import end_token_ids
from .onnx_metadata import state_metadata
from .optimum_exporter import missing_exporter
from .settings import OnnxSettings
from .standard_graph import GRAPH, WEIGHTS
from .to_onnx import check_blocks

ORT_MODEL = "model.ort"
_COPIED = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
)


def write_standard_onnx(
    checkpoint: Path,
    folder: Path,
    *,
    precision: str = "fp32",
    settings: OnnxSettings | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Export an ONNX model of standard operators with the checkpoint's configuration and tokenizer files.

    Args:
        checkpoint: A folder that transformers can load.
        folder: The folder to write; it is created.
        precision: Of the weights: `fp32`, `fp16`, `int8` or `int4`.
        settings: How to quantize to int4, and whether to write `model.ort` as well; absent stands for the defaults.
        metadata: What the graph says of itself.

    Raises:
        ExportError: optimum is missing or does not know the architecture, or the checkpoint names no end token.
    """
    settings = settings or OnnxSettings()
    check_exporter()
    if precision == "int4":
        check_blocks(checkpoint, settings, scheme="onnx-standard-int4")
    ends = end_token_ids(checkpoint)
    if not ends:
        raise ExportError(
            f"`{checkpoint}` names no end token, its ONNX model would never stop",
            hint="set eos_token_id in generation_config.json",
        )
    with tempfile.TemporaryDirectory(prefix="ammd-onnx-", dir=folder.parent) as scratch:
        _write_graph(checkpoint, folder, Path(scratch), precision=precision, settings=settings)
    for name in (GRAPH, WEIGHTS):
        if not (folder / name).is_file():
            raise ExportError(f"the ONNX exporter wrote no `{name}`", path=str(folder))
    state_metadata(folder / GRAPH, metadata or {})
    if settings.ort_format:
        task = f"write `{ORT_MODEL}` from `{folder / GRAPH}`"
        run_module("ammd.export.ort_format", [str(folder / GRAPH), str(folder / ORT_MODEL)], task=task)
    for name in _COPIED:
        if (checkpoint / name).is_file():
            shutil.copyfile(checkpoint / name, folder / name)
    _write_generation_config(checkpoint, folder, ends=ends)


def check_exporter() -> None:
    """Refuse the `onnx-standard` schemes where they cannot be made.

    Raises:
        ExportError: optimum is not installed, or not for the transformers that is.
    """
    if fault := missing_exporter():
        raise ExportError(fault[0], hint=f"{fault[1]}, or leave the `onnx-standard` schemes out")


def _write_graph(
    checkpoint: Path, folder: Path, scratch: Path, *, precision: str, settings: OnnxSettings
) -> None:
    """Run the exporter, then what turns its float32 graph into another."""
    task = f"export `{checkpoint}` to standard ONNX"
    traced, plain = scratch / "traced", scratch / "float32"
    traced.mkdir()
    target = folder if precision == "fp32" else plain
    run_module("ammd.export.standard_exporter", [str(checkpoint), str(traced), str(target)], task=task)
    shutil.rmtree(traced)
    if precision != "fp32":
        arguments = [str(plain / GRAPH), str(folder), precision, settings.model_dump_json()]
        run_module("ammd.export.standard_quantizer", arguments, task=task)


def _write_generation_config(checkpoint: Path, folder: Path, *, ends: tuple[int, ...]) -> None:
    """Copy the generation defaults, with every id that ends an answer."""
    path = checkpoint / "generation_config.json"
    document = (read_json(path) if path.is_file() else {}) | {"eos_token_id": list(ends)}
    text = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    (folder / "generation_config.json").write_text(text, encoding="utf-8")
