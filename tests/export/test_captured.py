from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from ammd.errors import ExportError
from ammd.export import captured
from ammd.machine import peak_rss_bytes


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module that does what its first argument says."""
    (tmp_path / "child_module.py").write_text(
        "import os, sys\n"
        "print('native line', flush=True)\n"
        "print('to stderr', os.environ.get('EXTRA'), os.environ['PYTHONHASHSEED'], file=sys.stderr)\n"
        "exec(sys.argv[1])\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    return "child_module"


def test_output_of_a_good_child_is_not_shown(
    module: str, own_temporary_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    captured.run_module(module, ["pass"], task="do it")
    assert capfd.readouterr() == ("", "")
    assert list(own_temporary_folder.iterdir()) == []


def test_error_quotes_the_end_of_the_output_and_names_the_log(module: str) -> None:
    code = "print(*range(40), sep='\\n'); sys.exit(3)"
    with pytest.raises(ExportError, match=r"cannot do it: the converter ended with status 3\n28\n") as caught:
        captured.run_module(module, [code], task="do it", environment={"EXTRA": "given"})
    assert str(caught.value).endswith("\n39")
    log = Path(str(caught.value.facts["log"]))
    assert str(log) in caught.value.hint
    assert "native line" in log.read_text()
    assert "to stderr given 0" in log.read_text()


def test_child_killed_in_native_code_is_an_error(module: str) -> None:
    with pytest.raises(ExportError, match="was killed by signal 11"):
        captured.run_module(module, ["os.kill(os.getpid(), 11)"], task="do it")


def test_verbose_shows_the_output_on_stderr(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AMMD_VERBOSE", "1")
    captured.run_module(module, ["pass"], task="do it")
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "native line" in shown.err


@pytest.mark.parametrize(("value", "verbose"), [("1", True), ("0", False), ("", False)])
def test_verbose_is_read_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, value: str, verbose: bool
) -> None:
    monkeypatch.setenv("AMMD_VERBOSE", value)
    assert captured.is_verbose() is verbose


def test_interrupt_kills_the_child(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    children: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def remember(*arguments: object, **options: object) -> subprocess.Popen[bytes]:
        child = popen(*arguments, **options)  # type: ignore[call-overload]
        children.append(child)
        child.stdout.read = _interrupt
        return child  # type: ignore[no-any-return]

    monkeypatch.setattr(captured.subprocess, "Popen", remember)
    with pytest.raises(KeyboardInterrupt):
        captured.run_module(module, ["import time; time.sleep(60)"], task="do it")
    assert [child.returncode for child in children] == [-signal.SIGKILL]


def _interrupt(_: int) -> bytes:
    raise KeyboardInterrupt


def test_peak_memory_is_the_childs_own(module: str) -> None:
    held = bytes(300 << 20)  # this process's peak, which the system would count for its children
    wait = "import time; time.sleep(0.5)"  # longer than what is looked at
    with captured.measured() as small:
        captured.run_module(module, [wait], task="do it")
    assert len(held) > 200 << 20 > small.peak_rss_bytes > 1 << 20
    own = peak_rss_bytes()
    with captured.measured() as large:
        captured.run_module(module, [f"held = b'x' * {own + (64 << 20)}; {wait}"], task="do it")
    assert own + (64 << 20) < large.peak_rss_bytes < own + (128 << 20)
