"""Building llama.cpp's tools, with a stand-in for cmake and the compiler."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from ammd.errors import EngineError
from ammd.runtime import llama_tools
from ammd.runtime.llama_tools import Arm64, arm64_folder, native_tool, run_command

ARCHITECTURE = "-DGGML_CPU_ARM_ARCH="


class Builder:
    """Writes what cmake would, with the architecture as content."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.architecture = ""
        self.fails_at = ""

    def __call__(self, command: Sequence[str | Path]) -> str:
        words = [str(word) for word in command]
        self.commands.append(words)
        if "-dumpfullversion" in words:
            return "12.2.0\n"
        if "-S" in words:
            self.architecture = next((word for word in words if word.startswith(ARCHITECTURE)), "")
        else:
            desk = Path(words[words.index("--build") + 1])
            for name in ("bin/llama-bench", *llama_tools._LIBRARIES):
                (desk / name).parent.mkdir(parents=True, exist_ok=True)
                (desk / name).write_text(f"{name} {self.architecture}")
            if self.fails_at and self.fails_at in self.architecture:
                raise EngineError("the compiler failed")
        return ""


@pytest.fixture
def builder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Builder:
    builder = Builder()
    monkeypatch.setenv("AMMD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(llama_tools, "source_tree", lambda: tmp_path / "tree")
    monkeypatch.setattr(llama_tools.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(llama_tools, "run_command", builder)
    return builder


def test_both_arm64_builds_are_made_once(builder: Builder) -> None:
    for build in Arm64:
        text = (arm64_folder(build) / "llama-bench").read_text()
        assert text == f"bin/llama-bench {ARCHITECTURE}{build.value}"
    assert len([words for words in builder.commands if "--build" in words]) == 2
    configured = next(words for words in builder.commands if "-S" in words)
    assert {"-DCMAKE_EXE_LINKER_FLAGS=-static -s", "-DGGML_NATIVE=OFF"} <= set(configured)


def test_an_altered_build_is_made_again(builder: Builder) -> None:
    program = arm64_folder(Arm64.DOTPROD) / "llama-bench"
    program.write_text("altered")
    assert (arm64_folder(Arm64.DOTPROD) / "llama-bench").read_text() != "altered"


def test_a_build_that_fails_leaves_nothing_that_counts(builder: Builder, tmp_path: Path) -> None:
    builder.fails_at = Arm64.DOTPROD.value
    with pytest.raises(EngineError, match="the compiler failed"):
        arm64_folder(Arm64.BASELINE)
    assert [path.suffix for path in (tmp_path / "cache").iterdir() if path.is_dir()] == [".build"]
    builder.fails_at = ""
    assert (arm64_folder(Arm64.BASELINE) / "llama-bench").is_file()
    assert not [path for path in (tmp_path / "cache").iterdir() if path.suffix == ".build"]


@pytest.mark.parametrize("missing", ["cmake", "aarch64-linux-gnu-g++"])
def test_a_missing_tool_is_named(builder: Builder, missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_tools.shutil, "which", lambda name: None if name == missing else name)
    with pytest.raises(EngineError, match=f"no `{missing}`".replace("+", r"\+")):
        arm64_folder(Arm64.BASELINE)


def test_the_native_tool_is_built_where_it_is_not_there(builder: Builder) -> None:
    native_tool("llama-bench")
    built = next(words for words in builder.commands if "--build" in words)
    assert built[built.index("--target") + 1] == "llama-bench"
    assert "-DBUILD_SHARED_LIBS=ON" in builder.commands[0]


def test_a_command_that_fails_says_its_last_words() -> None:
    with pytest.raises(EngineError, match=r"`sh` ended with 3:\nlast words"):
        run_command(["sh", "-c", "echo last words >&2; exit 3"])
