"""The doctor: what it finds, what it advises, and the exit code of the run it speaks of."""

import json
import shutil
import sys
from importlib import metadata

import pytest

from ammd.pipeline import doctor
from ammd.pipeline.cli import main


def finding(document, name):
    return next(row for row in document["findings"] if row["name"] == name)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty user cache."""
    monkeypatch.setenv("AMMD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_every_declared_dependency_is_looked_at(tmp_path, cache):
    document = doctor.examine(tmp_path)
    names = {row["name"] for row in document["findings"]}
    assert names >= {"python", "torch", "transformers", "llama-cpp-python", "onnxruntime-genai", "filelock"}
    assert names >= {"torch build", "C++ compiler", "make", "cores", "bfloat16", "disk", "memory", "cache"}
    assert finding(document, "cache")["state"] == "note"


@pytest.mark.parametrize(("name", "code"), [("torch", 4), ("gguf", 5), ("onnxruntime-genai", 6)])
def test_missing_library_gives_the_code_of_the_stage_that_needs_it(tmp_path, cache, monkeypatch, name, code):
    real = metadata.version

    def version(distribution):
        if distribution == name:
            raise metadata.PackageNotFoundError(name)
        return real(distribution)

    monkeypatch.setattr(metadata, "version", version)
    document = doctor.examine(tmp_path)
    row = finding(document, name)
    assert (row["state"], row["found"], document["exit_code"]) == ("missing", "not installed", code)
    assert row["advice"].startswith(f"pip install '{name}")


def test_version_outside_the_range_is_missing(tmp_path, cache, monkeypatch):
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "9.9" if name == "transformers" else real(name))
    row = finding(doctor.examine(tmp_path), "transformers")
    assert row["state"] == "missing"
    assert row["found"].startswith("9.9, outside ")


def test_no_compiler_is_a_note_with_what_to_install(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    row = finding(doctor.examine(tmp_path), "C++ compiler")
    assert row["state"] == "note"
    assert "apt install g++" in row["advice"]


def test_offline_folder_that_is_not_there(tmp_path, cache, monkeypatch):
    monkeypatch.setenv("AMMD_OFFLINE_DIR", str(tmp_path / "none"))
    document = doctor.examine(tmp_path)
    assert finding(document, "AMMD_OFFLINE_DIR")["state"] == "missing"
    assert document["exit_code"] == 3


def test_command_prints_one_document_and_ends_with_its_code(tmp_path, cache, monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["ammd", "doctor", "--json", "--runs-dir", str(tmp_path)])
    with pytest.raises(SystemExit) as caught:
        main()
    document = json.loads(capfd.readouterr().out)
    assert document["schema"] == "ammd.doctor/1"
    assert caught.value.code == document["exit_code"]


def test_table_shows_state_and_advice(tmp_path, cache, monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["ammd", "doctor", "--runs-dir", str(tmp_path)])
    with pytest.raises(SystemExit):
        main()
    out = capfd.readouterr().out
    assert "the first run downloads the packaged teacher" in out
