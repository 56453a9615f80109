from __future__ import annotations

import hashlib
import importlib.metadata
import io
import tarfile
from pathlib import Path

import pytest

from ammd import llama_source
from ammd.errors import ArtifactError, FetchError
from ammd.fetch import LLAMA_CPP_SOURCES, PinnedFile

NEEDED = ("convert_hf_to_gguf.py", "conversion/base.py", "gguf-py/gguf/__init__.py")


def _make_tree(folder: Path) -> Path:
    for name in NEEDED:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def _set_version(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(llama_source.importlib.metadata, "version", lambda _: version)


def test_variable_names_another_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMA_CPP_DIR", str(_make_tree(tmp_path)))
    assert llama_source.source_tree() == tmp_path


@pytest.mark.parametrize("missing", NEEDED)
def test_variable_that_names_no_tree_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    (_make_tree(tmp_path) / missing).unlink()
    monkeypatch.setenv("LLAMA_CPP_DIR", str(tmp_path))
    with pytest.raises(ArtifactError, match=f"is no llama.cpp source tree .* no `{missing}`"):
        llama_source.source_tree()


def test_version_without_a_pin_names_both_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    _set_version(monkeypatch, "99.0")
    with pytest.raises(
        FetchError, match=r"no source archive is pinned for llama-cpp-python `99\.0`"
    ) as caught:
        llama_source.source_tree()
    assert "LLAMA_CPP_DIR" in caught.value.hint
    assert "llama-cpp-python==" in caught.value.hint


def test_missing_llama_cpp_python_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(llama_source.importlib.metadata, "version", missing)
    with pytest.raises(FetchError, match="llama-cpp-python is not installed"):
        llama_source.source_tree()


def _pin_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, members: list[str]) -> None:
    """Let version 1.0 be installed, whose archive lies in the offline folder and has these empty files."""
    archive = tmp_path / "source-1.0.tar.gz"
    with tarfile.open(archive, "w:gz") as opened:
        for name in [f"source-1.0/vendor/llama.cpp/{member}" for member in members] + ["source-1.0/setup.py"]:
            opened.addfile(tarfile.TarInfo(name), io.BytesIO())
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    pin = PinnedFile(package="source", version="1.0", sha256=digest, filename=archive.name)
    monkeypatch.setitem(LLAMA_CPP_SOURCES, "1.0", pin)
    _set_version(monkeypatch, "1.0")
    monkeypatch.setenv("AMMD_OFFLINE_DIR", str(tmp_path))
    monkeypatch.setenv("AMMD_CACHE", str(tmp_path / "cache"))


def test_tree_is_taken_from_the_vendored_folder_without_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = [*NEEDED, "src/llama.cpp", "LICENSE", "models/big.gguf", "docs/a.md", "tests/t.cpp"]
    _pin_archive(tmp_path, monkeypatch, members)
    tree = llama_source.source_tree()
    found = {path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.is_file()}
    assert found == {*NEEDED, "src/llama.cpp", "LICENSE", "manifest.json"}


@pytest.mark.parametrize(
    ("suffix", "altered", "is_mended"),
    [
        (".py", NEEDED[0], True),
        (".py", "src/llama.cpp", False),  # not used, so not looked at
        ("", "src/llama.cpp", True),
    ],
)
def test_what_will_be_used_is_checked_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, altered: str, is_mended: bool
) -> None:
    _pin_archive(tmp_path, monkeypatch, [*NEEDED, "src/llama.cpp"])
    tree = llama_source.source_tree()
    (tree / altered).write_bytes(b"x")
    assert llama_source.source_tree(suffix=suffix) == tree
    assert (tree / altered).read_bytes() == (b"" if is_mended else b"x")


def test_installed_version_has_a_pin() -> None:
    assert importlib.metadata.version("llama-cpp-python") in LLAMA_CPP_SOURCES


@pytest.mark.real
def test_pinned_tree_has_converter_and_the_code_of_llama_bench() -> None:
    tree = llama_source.source_tree()
    for name in (*NEEDED, "CMakeLists.txt", "LICENSE", "tools/llama-bench/llama-bench.cpp", "src/llama.cpp"):
        assert (tree / name).is_file(), name
