"""What a stage is pointed at: a name for the tables and a path, from which the engine follows.

A path that ends in `.gguf` runs in llama.cpp, a folder with `genai_config.json` in onnxruntime-genai, a
folder with `config.json` and safetensors weights in torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from ammd.errors import ArtifactError


class EngineKind(Enum):
    """The library that runs an artifact."""

    LLAMA_CPP = "llama.cpp"
    ONNX_GENAI = "onnxruntime-genai"
    TORCH = "torch"


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactRef:
    """One model under test."""

    name: str  # as it stands in tables, for example `gguf-q8_0` or `student`
    path: Path  # a GGUF, an ONNX folder or a checkpoint folder

    @property
    def kind(self) -> EngineKind:
        """The engine that runs it."""
        return detect_kind(self.path)


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
    if not path.exists():
        raise ArtifactError(f"no model at `{path}`", path=str(path))
    raise ArtifactError(
        f"`{path}` is no model that an engine knows",
        hint="give a .gguf file, a folder with genai_config.json, or a checkpoint with safetensors",
        path=str(path),
    )
