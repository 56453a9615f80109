from __future__ import annotations

import json
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ammd.artifact import hash_file, hash_records, list_files
from ammd.errors import ArtifactError, ExportError
from ammd.export import estimates, single_file
from ammd.export.checkpoint_facts import read_checkpoint_facts
from ammd.export.estimates import disk_bytes, memory_bytes
from ammd.export.schemes import DEFAULT_SCHEMES, Scheme, mix_of
from ammd.export.settings import ExportSettings, ImatrixSettings
from ammd.export.single_file import export_file
from ammd.export.stage import ExportInputs, run

# Of each kind of type at least one; each takes a second to start its process. test_settings.py has that llama.cpp
# knows them all.
NAMES = (
    "f32",
    "bf16",
    "q8_0",
    "q6_k",
    "q5_k_m",
    "q4_k_m",
    "iq4_xs",
    "q3_k_m",
    "iq3_xxs",
    "iq2_xs",
    "iq1_s",
    "tq1_0",
)
GGUF_TYPES = [Scheme(f"gguf-{name}") for name in NAMES]
FILES = {
    "gguf-f16": "student-f16.gguf",
    "gguf-q8_0": "student-q8_0.gguf",
    "gguf-q4_0": "student-q4_0.gguf",
    "gguf-q4_k_m": "student-q4_k_m.gguf",
    "onnx-int4": "onnx-int4",
}


def _run(checkpoint: Path, folder: Path, *schemes: Scheme) -> list[dict[str, Any]]:
    settings = ExportSettings(schemes=schemes or DEFAULT_SCHEMES)
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
        assert entry["seconds"] > 0
        assert entry["peak_rss_bytes"] > 10 << 20
    bits = [artifacts[name]["bits_per_weight"] for name in ("gguf-f16", "gguf-q8_0", "gguf-q4_k_m")]
    assert bits == sorted(bits, reverse=True)
    assert (
        artifacts["gguf-q4_0"]["bits_per_weight"] < artifacts["gguf-q4_k_m"]["bits_per_weight"]
    )  # rows of 64
    assert len(artifacts["gguf-q4_k_m"]["fallbacks"]) > len(artifacts["gguf-q8_0"]["fallbacks"]) == 0
    (head,) = artifacts["gguf-q4_0"]["fallbacks"]
    assert (head["tensor"], head["asked"], head["stored"]) == ("token_embd.weight", "Q6_K", "Q8_0")


@pytest.mark.real
def test_gguf_types_are_made_and_open_where_rows_fit(wide_checkpoint: Path, tmp_path: Path) -> None:
    """With an importance matrix; each at its own size, and llama.cpp reads it."""
    from gguf import GGUFReader

    from ammd.runtime.engine import open_engine

    (tmp_path / "texts.txt").write_text("the cat in a hat. " * 200)
    settings = ExportSettings(
        schemes=tuple(GGUF_TYPES),
        imatrix=ImatrixSettings(texts=(str(tmp_path / "texts.txt"),), max_tokens=1024),
    )
    folder = tmp_path / "files"
    folder.mkdir()
    results = run(ExportInputs(checkpoint=wide_checkpoint), settings, folder)
    assert [entry["name"] for entry in results["artifacts"]] == [scheme.value for scheme in GGUF_TYPES]
    assert results["imatrix"]["path"] == "student-imatrix.gguf"
    assert results["imatrix"]["matrices"] == 2 * 7
    assert results["imatrix"]["tokens"] == 1024
    for scheme, entry in zip(GGUF_TYPES, results["artifacts"], strict=True):
        assert entry["fallbacks"] == [], scheme
        mix = mix_of(scheme)
        reader = GGUFReader(folder / entry["path"])
        head = next(tensor for tensor in reader.tensors if tensor.name == "token_embd.weight")
        assert head.tensor_type.name == (mix.head if mix else scheme.type_name.upper())
        assert ("quantize.imatrix.file" in reader.fields) == (mix is not None)
        with open_engine(folder / entry["path"], threads=1, context_tokens=16) as engine:
            assert np.isfinite(engine.prefill([1, 20, 30])).all()
    bits = {entry["name"]: entry["bits_per_weight"] for entry in results["artifacts"]}
    order = NAMES[:-1]  # by size, but for the last
    sizes = [bits[f"gguf-{name}"] for name in order]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == len(sizes)


def test_an_importance_matrix_needs_texts(tiny_checkpoint: Path, tmp_path: Path) -> None:
    settings = ExportSettings(schemes=(Scheme.GGUF_Q4_0,), imatrix=ImatrixSettings())
    with pytest.raises(ExportError, match="no texts to measure an importance matrix on") as caught:
        run(ExportInputs(checkpoint=tiny_checkpoint), settings, tmp_path)
    assert "imatrix.texts" in caught.value.hint


@pytest.mark.real
def test_source_of_the_quantizer_is_not_left_behind(tiny_checkpoint: Path, tmp_path: Path) -> None:
    _run(tiny_checkpoint, tmp_path, Scheme.GGUF_Q8_0)
    assert [path.name for path in tmp_path.iterdir()] == ["student-q8_0.gguf"]


@pytest.mark.real
def test_files_and_memory_stay_below_the_estimates(smollm2_checkpoint: Path, tmp_path: Path) -> None:
    artifacts = _run(smollm2_checkpoint, tmp_path)
    facts = read_checkpoint_facts(smollm2_checkpoint)
    written = sum(entry["bytes"] for entry in artifacts)
    scratch = 5.2 * facts.parameters  # of the ONNX builder, gone again
    estimate = disk_bytes(facts, ExportSettings())
    assert written < estimate - scratch < 1.3 * written  # safe, and does not refuse work without need
    peak = max(entry["peak_rss_bytes"] for entry in artifacts)
    shard = (smollm2_checkpoint / "model.safetensors").stat().st_size
    assert peak < memory_bytes(facts, ExportSettings()) < 1.5 * peak
    assert peak < 1.3 * shard + 500e6


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
    monkeypatch.setattr(estimates, "available_memory_bytes", lambda: 1 << 20)
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
