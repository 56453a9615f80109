from __future__ import annotations

from pathlib import Path

import pytest

from ammd.errors import ArtifactError
from ammd.runtime.artifact_ref import ArtifactRef, EngineKind, detect_kind


def test_kind_follows_form_on_disk(tmp_path: Path, tiny_checkpoint: Path) -> None:
    gguf = tmp_path / "a.gguf"
    gguf.write_bytes(b"GGUF")
    onnx = tmp_path / "onnx"
    onnx.mkdir()
    (onnx / "genai_config.json").write_text("{}")
    assert ArtifactRef(name="a", path=gguf).kind is EngineKind.LLAMA_CPP
    assert detect_kind(onnx) is EngineKind.ONNX_GENAI
    assert detect_kind(tiny_checkpoint) is EngineKind.TORCH


def test_missing_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no model at"):
        detect_kind(tmp_path / "gone.gguf")


def test_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ArtifactError, match="no model that an engine knows"):
        detect_kind(tmp_path)
