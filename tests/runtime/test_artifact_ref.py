from __future__ import annotations

from pathlib import Path

import pytest

from ammd.errors import ArtifactError, EngineError
from ammd.runtime.artifact_ref import ArtifactRef, EngineKind, asked_kind, choose_kind, detect_kind


def test_kind_follows_form_on_disk(tmp_path: Path, tiny_checkpoint: Path) -> None:
    gguf = tmp_path / "a.gguf"
    gguf.write_bytes(b"GGUF")
    onnx = tmp_path / "onnx"
    onnx.mkdir()
    (onnx / "model.onnx").write_bytes(b"")
    assert detect_kind(onnx) is EngineKind.ONNX_RUNTIME
    (onnx / "genai_config.json").write_text("{}")
    assert ArtifactRef(name="a", path=gguf).kind is EngineKind.LLAMA_CPP
    assert detect_kind(onnx) is EngineKind.ONNX_GENAI
    assert detect_kind(tiny_checkpoint) is EngineKind.TORCH


def test_a_folder_for_genai_also_runs_in_onnxruntime(tmp_path: Path, tiny_checkpoint: Path) -> None:
    (tmp_path / "genai_config.json").write_text("{}")
    asked = ArtifactRef(name="a", path=tmp_path, engine=EngineKind.ONNX_RUNTIME)
    assert asked.kind is EngineKind.ONNX_RUNTIME
    assert (
        choose_kind(tmp_path, None) is choose_kind(tmp_path, EngineKind.ONNX_GENAI) is EngineKind.ONNX_GENAI
    )
    with pytest.raises(EngineError, match=r"does not run in onnxruntime") as caught:
        choose_kind(tiny_checkpoint, EngineKind.ONNX_RUNTIME)
    assert caught.value.hint == "torch runs it"
    with pytest.raises(EngineError, match=r"does not run in torch"):
        choose_kind(tmp_path, EngineKind.TORCH)


def test_request_names_an_engine_or_none() -> None:
    assert asked_kind({"engine": "onnxruntime"}) is EngineKind.ONNX_RUNTIME
    assert asked_kind({"engine": None}) is asked_kind({}) is None


def test_missing_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no model at"):
        detect_kind(tmp_path / "gone.gguf")


def test_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ArtifactError, match="no model that an engine knows"):
        detect_kind(tmp_path)
