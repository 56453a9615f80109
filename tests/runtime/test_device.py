"""What a device does, on this machine's own shell."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ammd.errors import EngineError
from ammd.runtime.device import Device, Ran
from ammd.runtime.local_device import LocalConnection


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    monkeypatch.setenv("AMMD_CACHE", str(tmp_path / "it's the cache"))
    with Device(LocalConnection()) as device:
        yield device


def test_a_script_gives_output_errors_and_exit_code(device: Device) -> None:
    ran = device.run("echo out; echo err >&2; exit 3")
    assert ran == Ran(exit_code=3, stdout="out\n", stderr="err\n")


def test_files_go_there_and_back_whole(device: Device, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(range(256)) * 4096)
    there = f"{device.folder}/a file's copy"
    device.push(source, there)
    device.pull(there, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == source.read_bytes()
    assert os.access(there, os.X_OK)
    assert [path.name for path in Path(device.folder).iterdir()] == ["a file's copy"]


def test_a_greeting_of_the_login_shell_is_not_the_folder(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = LocalConnection().folder_script
    monkeypatch.setattr(LocalConnection, "folder_script", f"echo Welcome to the board; {script}")
    assert Path(device.folder).is_dir()


def test_a_script_that_does_not_end_is_given_up(device: Device) -> None:
    with pytest.raises(EngineError, match=r"`local` has not finished after 0 s"):
        device.run("sleep 1000", limit_s=0.2)


def test_a_missing_command_is_named(device: Device) -> None:
    with pytest.raises(EngineError, match=r"`no-such-tool` is missing on `local`: counting") as caught:
        device.ask("no-such-tool --count", purpose="counting")
    assert caught.value.exit_code == 6


def test_a_missing_file_is_named(device: Device, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"reading `/no/such` on `local` failed: .*No such file"):
        device.read("/no/such")
    with pytest.raises(EngineError, match=r"fetching `/no/such` on `local` failed"):
        device.pull("/no/such", tmp_path / "back")
    assert not list(tmp_path.glob("back*"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_no_space_left_is_said_and_leaves_nothing(device: Device, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x" * 10_000)
    full = Path(device.folder, "model.part")
    full.symlink_to("/dev/full")
    with pytest.raises(EngineError, match=r"`local` has no space left: copying `source`"):
        device.push(source, f"{device.folder}/model")
    assert not list(Path(device.folder).iterdir())


@pytest.mark.parametrize(
    "text", ["sh: 1: cannot create x: Permission denied", "/system/bin/sh: Permission denied"]
)
def test_no_permission_is_said(device: Device, text: str) -> None:
    error = device.failure(Ran(exit_code=126, stdout="", stderr=text), purpose="copying `x`")
    assert str(error) == "`local` does not permit it: copying `x`"


@pytest.mark.parametrize(
    "text",
    [
        "sh: 1: taskset: not found",
        "bash: line 1: taskset: command not found",
        "sh: taskset: inaccessible or not found",
    ],
)
def test_each_shell_names_a_missing_command_in_its_own_way(device: Device, text: str) -> None:
    error = device.failure(Ran(exit_code=127, stdout="", stderr=text), purpose="pinning")
    assert str(error) == "`taskset` is missing on `local`: pinning"


def test_a_held_script_sees_the_end_of_the_process_that_started_it(tmp_path: Path) -> None:
    code = (
        "from ammd.runtime.device import Device; from ammd.runtime.local_device import LocalConnection; "
        f"Device(LocalConnection()).run('echo up > {tmp_path}/up; cat; echo ended > {tmp_path}/end', held=True)"
    )
    process = subprocess.Popen([sys.executable, "-P", "-c", code])
    wait_for(tmp_path / "up")
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_for(tmp_path / "end")
    assert (tmp_path / "end").read_text() == "ended\n"


def wait_for(path: Path) -> None:
    for _ in range(600):
        if path.exists() and path.stat().st_size:
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} did not come")
