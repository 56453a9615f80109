from __future__ import annotations

import dataclasses
import json
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from ammd.artifact import hash_file, hash_records, list_files
from ammd.errors import ArtifactError, ExportError
from ammd.export import single_file, stage
from ammd.export.checkpoint_facts import read_checkpoint_facts
from ammd.export.settings import ExportSettings, Scheme
from ammd.export.single_file import export_file
from ammd.export.stage import ExportInputs, run

FILES = {
    "gguf-f16": "student-f16.gguf",
    "gguf-q8_0": "student-q8_0.gguf",
    "gguf-q4_0": "student-q4_0.gguf",
    "gguf-q4_k_m": "student-q4_k_m.gguf",
    "onnx-int4": "onnx-int4",
}


def _run(checkpoint: Path, folder: Path, *schemes: Scheme) -> list[dict[str, Any]]:
    settings = ExportSettings(schemes=schemes or tuple(Scheme))
    results = run(ExportInputs(checkpoint=checkpoint), settings, folder)
    assert json.loads(json.dumps(results)) == results
    artifacts: list[dict[str, Any]] = results["artifacts"]
    return artifacts


@pytest.mark.real
def test_every_scheme_is_made_and_described(tiny_checkpoint: Path, tmp_path: Path) -> None:
    artifacts = {entry["name"]: entry for entry in _run(tiny_checkpoint, tmp_path)}
    assert {name: entry["path"] for name, entry in artifacts.items()} == FILES
    assert {path.name for path in tmp_path.iterdir()} == set(FILES.values())
    for name, entry in artifacts.items():
        path = tmp_path / entry["path"]
        if name == "onnx-int4":
            files = list_files(path)
            assert entry["format"] == "onnx-genai"
            assert entry["sha256"] == hash_records(files)
            assert entry["bytes"] == sum(record.bytes for record in files)
        else:
            assert entry["format"] == "gguf"
            assert entry["sha256"] == hash_file(path)
            assert entry["bytes"] == path.stat().st_size
    bits = [artifacts[name]["bits_per_weight"] for name in ("gguf-f16", "gguf-q8_0", "gguf-q4_k_m")]
    assert bits == sorted(bits, reverse=True)
    assert (
        artifacts["gguf-q4_0"]["bits_per_weight"] < artifacts["gguf-q4_k_m"]["bits_per_weight"]
    )  # rows of 64
    assert len(artifacts["gguf-q4_k_m"]["fallbacks"]) > len(artifacts["gguf-q8_0"]["fallbacks"]) == 0
    (head,) = artifacts["gguf-q4_0"]["fallbacks"]
    assert (head["tensor"], head["asked"], head["stored"]) == ("token_embd.weight", "Q6_K", "Q8_0")


@pytest.mark.real
def test_source_of_the_quantizer_is_not_left_behind(tiny_checkpoint: Path, tmp_path: Path) -> None:
    _run(tiny_checkpoint, tmp_path, Scheme.GGUF_Q8_0)
    assert [path.name for path in tmp_path.iterdir()] == ["student-q8_0.gguf"]


@pytest.mark.real
def test_files_stay_below_the_estimate(smollm2_checkpoint: Path, tmp_path: Path) -> None:
    artifacts = _run(smollm2_checkpoint, tmp_path)
    facts = read_checkpoint_facts(smollm2_checkpoint)
    written = sum(entry["bytes"] for entry in artifacts)
    estimate = stage.estimate_disk_bytes(facts, tuple(Scheme))
    assert written < estimate < 1.3 * written  # a safe estimate that does not refuse work without need


def test_estimate_counts_the_quantizers_source_once(tiny_checkpoint: Path) -> None:
    facts = read_checkpoint_facts(tiny_checkpoint)
    both = stage.estimate_disk_bytes(facts, (Scheme.GGUF_F16, Scheme.GGUF_Q8_0))
    assert stage.estimate_disk_bytes(facts, (Scheme.GGUF_Q8_0,)) == both
    assert stage.estimate_disk_bytes(facts, (Scheme.GGUF_F16,)) < both


def test_estimate_counts_the_embedding_of_an_untied_model(tiny_checkpoint: Path) -> None:
    tied = read_checkpoint_facts(tiny_checkpoint)
    untied = dataclasses.replace(tied, tied_head=False)
    schemes = (Scheme.ONNX_INT4,)
    more = stage.estimate_disk_bytes(untied, schemes) - stage.estimate_disk_bytes(tied, schemes)
    assert more == 4 * tied.embedding_weights


def test_too_little_disk_is_refused_before_any_work(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 10, 0))
    with pytest.raises(ArtifactError, match=r"the export needs \d+ MiB of disk"):
        _run(tiny_checkpoint, tmp_path, Scheme.ONNX_INT4)
    assert list(tmp_path.iterdir()) == []


def test_too_little_memory_is_refused_before_any_work(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "available_memory_bytes", lambda: 1 << 20)
    with pytest.raises(ExportError, match=r"needs about \d+ MiB of memory, 1 MiB are available") as caught:
        _run(tiny_checkpoint, tmp_path, Scheme.ONNX_INT4)
    assert caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_folder_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"is not a checkpoint: no `config\.json`"):
        _run(tmp_path, tmp_path, Scheme.GGUF_F16)


@pytest.fixture
def fake_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage that writes one small file instead of converting."""

    def write(inputs: ExportInputs, settings: ExportSettings, folder: Path) -> dict[str, Any]:
        (folder / "student.gguf").write_text("new")
        return {"artifacts": [{"name": settings.schemes[0].value, "path": "student.gguf"}]}

    monkeypatch.setattr(single_file, "run", write)


def test_single_file_lands_where_it_was_asked(fake_stage: None, tmp_path: Path) -> None:
    out = tmp_path / "new folder" / "out.gguf"
    artifact = export_file(tmp_path, Scheme.GGUF_F16, out=out)
    assert artifact == {"name": "gguf-f16", "path": str(out)}
    assert [path.name for path in out.parent.iterdir()] == ["out.gguf"]


def test_existing_output_is_kept_without_force(fake_stage: None, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    out.write_text("old")
    with pytest.raises(ArtifactError, match="is already there") as caught:
        export_file(tmp_path, Scheme.GGUF_F16, out=out)
    assert "--force" in caught.value.hint
    assert out.read_text() == "old"
    export_file(tmp_path, Scheme.GGUF_F16, out=out, force=True)
    assert out.read_text() == "new"


def test_failed_export_leaves_the_old_output(tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    out.write_text("old")
    with pytest.raises(ArtifactError, match="is not a checkpoint"):
        export_file(tmp_path / "nothing", Scheme.GGUF_F16, out=out, force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]
    assert out.read_text() == "old"
