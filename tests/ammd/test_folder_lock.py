from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ammd.errors import ArtifactError
from ammd.folder_lock import LOCK_NAME, folder_lock, is_locked

HOLD = """
import subprocess, sys
from pathlib import Path
from ammd.folder_lock import folder_lock
with folder_lock(Path(sys.argv[1]), wait=False) as lock:
    heir = subprocess.Popen([sys.executable, "-c", "input()"], stdin=0, pass_fds=[lock])
    print(heir.pid, flush=True)
    heir.wait()
"""


def test_lock_is_held_until_the_last_process_that_has_it_ends(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        heir = int(holder.stdout.readline())
        with pytest.raises(ArtifactError, match=rf"another `ammd` \(process {holder.pid}\) is working in"):
            folder_lock(tmp_path, wait=False).__enter__()
        holder.kill()
        holder.wait()
        assert is_locked(tmp_path)
        os.kill(heir, signal.SIGKILL)
        with folder_lock(tmp_path, wait=False):  # although it may take a moment to die
            assert is_locked(tmp_path)
    assert not is_locked(tmp_path)


def test_waiting_says_for_whom_once_and_gets_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    first = folder_lock(tmp_path, wait=False)
    first.__enter__()
    got = threading.Event()

    def wait() -> None:
        with folder_lock(tmp_path, wait=True):
            got.set()

    thread = threading.Thread(target=wait)
    thread.start()
    assert not got.wait(0.3)
    first.__exit__(None, None, None)
    assert got.wait(30)
    thread.join()
    expected = f"another `ammd` (process {os.getpid()}) is working in `{tmp_path}`; waiting for it"
    assert [record.message for record in caplog.records] == [expected]


def test_lock_in_a_folder_that_is_removed_meanwhile_is_taken_anew(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    first = folder_lock(folder, wait=False)
    first.__enter__()
    got = threading.Event()
    go_on = threading.Event()

    def wait() -> None:
        with folder_lock(folder, wait=True):
            got.set()
            go_on.wait(30)

    thread = threading.Thread(target=wait)
    thread.start()
    assert not got.wait(0.3)
    shutil.rmtree(folder)  # what cleaning up does, with the lock in its hand
    first.__exit__(None, None, None)
    assert got.wait(30)
    assert (folder / LOCK_NAME).is_file()
    assert is_locked(folder)
    go_on.set()
    thread.join()


def test_file_system_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(_descriptor: int, _operation: int) -> None:
        raise OSError(38, os.strerror(38))

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(ArtifactError, match=r"has no locks, which keep two runs apart") as caught:
        folder_lock(tmp_path, wait=True).__enter__()
    assert "--runs-dir" in caught.value.hint


def test_damaged_note_of_the_holder_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / LOCK_NAME).write_bytes(b"\xff[1")
    assert not is_locked(tmp_path)
    with folder_lock(tmp_path, wait=False):
        assert is_locked(tmp_path)
