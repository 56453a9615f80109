"""What a stage is pointed at: a name for the tables and a path, from which the engine follows.

A path that ends in `.gguf` runs in llama.cpp, a folder with `genai_config.json` in onnxruntime-genai, a
folder with `config.json` and safetensors weights in torch, another folder with a `.onnx` in onnxruntime itself,
which is also to be had for what onnxruntime-genai runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from ammd.errors import ArtifactError, EngineError


class EngineKind(Enum):
    """The library that runs an artifact."""

    LLAMA_CPP = "llama.cpp"
    ONNX_GENAI = "onnxruntime-genai"
    ONNX_RUNTIME = "onnxruntime"
    TORCH = "torch"


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactRef:
    """One model under test."""

    name: str  # as it stands in tables, for example `gguf-q8_0` or `student`
    path: Path  # a GGUF, an ONNX folder or a checkpoint folder
    engine: EngineKind | None = None  # None leaves it to the form on disk

    @property
    def kind(self) -> EngineKind:
        """The engine that runs it."""
        return choose_kind(self.path, self.engine)


def choose_kind(path: Path, engine: EngineKind | None) -> EngineKind:
    """Return the engine for `path`: `engine` if it can run it, without one what its form calls for.

    Raises:
        ArtifactError: Nothing is there, or no engine knows the form.
        EngineError: `engine` cannot run this form.
    """
    kind = detect_kind(path)
    if engine is None or engine is kind:
        return kind
    if engine is EngineKind.ONNX_RUNTIME and kind is EngineKind.ONNX_GENAI:
        return engine
    raise EngineError(
        f"`{path}` does not run in {engine.value}", hint=f"{kind.value} runs it", path=str(path)
    )


def asked_kind(request: Mapping[str, Any]) -> EngineKind | None:
    """Return the engine that a child's request names as `engine`; None where it names none."""
    name = request.get("engine")
    return EngineKind(name) if name else None


def detect_kind(path: Path) -> EngineKind:
    """Return the engine for `path` by its form on disk.

    Raises:
        ArtifactError: Nothing is there, or no engine knows the form.
    """
    if path.suffix == ".gguf" and path.is_file():
        return EngineKind.LLAMA_CPP
    if (path / "genai_config.json").is_file():
        return EngineKind.ONNX_GENAI
    if (path / "config.json").is_file() and any(path.glob("*.safetensors")):
        return EngineKind.TORCH
    if any(path.glob("*.onnx")):
        return EngineKind.ONNX_RUNTIME
    if not path.exists():
        raise ArtifactError(f"no model at `{path}`", path=str(path))
    raise ArtifactError(
        f"`{path}` is no model that an engine knows",
        hint="give a .gguf file, a folder with a .onnx, or a checkpoint with safetensors",
        path=str(path),
    )
