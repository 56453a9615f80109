"""What was measured, for whoever reads the numbers later: name, kind, size and hash of a model's files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ammd.artifact import whole_record
from ammd.errors import ArtifactError
from ammd.gguf_reader import open_gguf

from .artifact_ref import EngineKind, detect_kind

_KINDS = {
    EngineKind.LLAMA_CPP: "gguf",
    EngineKind.ONNX_GENAI: "onnx",
    EngineKind.ONNX_RUNTIME: "onnx",
    EngineKind.TORCH: "checkpoint",
}


def describe_file(path: Path) -> dict[str, Any]:
    """Return flat JSON values; `weight_bytes` and `parameters` are None but for a GGUF, which states them."""
    whole = whole_record(path)
    return {
        "name": path.resolve().name,
        "kind": _KINDS[detect_kind(path)],
        "bytes": whole.bytes,
        "sha256": whole.sha256,
        **_weights(path),
    }


def _weights(path: Path) -> dict[str, int | None]:
    try:
        tensors = open_gguf(path).tensors if path.is_file() else []
    except ArtifactError:  # its engine could read it, and that is what was asked
        tensors = []
    return {
        "weight_bytes": sum(int(tensor.n_bytes) for tensor in tensors) or None,
        "parameters": sum(int(tensor.n_elements) for tensor in tensors) or None,
    }
