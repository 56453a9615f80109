from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from ammd.scratch import scratch_folder

KILLED = """
import os, signal
from ammd.scratch import scratch_folder
with scratch_folder() as folder:
    (folder / "weights").write_text("many")
    print(folder, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


def _age(folder: Path) -> None:
    os.utime(folder, (0, 0))


def test_a_folder_is_empty_and_gone_afterwards(temporary: Path) -> None:
    with pytest.raises(KeyboardInterrupt), scratch_folder() as folder:
        assert list(folder.iterdir()) == []
        (folder / "inner").mkdir()
        raise KeyboardInterrupt
    assert list(temporary.iterdir()) == []


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no such signal here")
def test_what_a_killed_process_left_goes_with_the_next_folder(temporary: Path) -> None:
    ended = subprocess.run([sys.executable, "-P", "-c", KILLED], capture_output=True, text=True, check=False)
    left = Path(ended.stdout.strip()).parent
    assert ended.returncode == -signal.SIGKILL
    assert left.parent == temporary
    with scratch_folder():
        assert left.exists()  # it is young
    _age(left)
    with scratch_folder():
        assert not left.exists()


def test_what_is_held_or_not_ours_stays(temporary: Path) -> None:
    with scratch_folder() as held:
        _age(held.parent)
        others = [temporary / "ammd-scratch-other", temporary / "ammd-notes"]
        for other in others:  # no lock, another name
            other.mkdir()
            _age(other)
        with scratch_folder():
            assert held.exists()
        assert all(other.exists() for other in others)
