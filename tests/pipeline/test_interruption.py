"""Real processes, really killed: nothing half-written stays, and the next run goes on."""

import json
import signal
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from ammd.folder_lock import is_locked
from ammd.pipeline.cache import run_lock
from ammd.pipeline.stages import STAGES


def finish(process):
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


def run_folder(tmp_path):
    (folder,) = (tmp_path / "runs" / "tiny").iterdir()
    return folder


def wait_for(path):
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.05)


def test_killed_run_leaves_no_half_stage_and_the_next_one_continues(
    recipe_path, tmp_path, stand_in, monkeypatch
):
    monkeypatch.setenv("STAND_IN_FAULT", "distill:sleep")
    first = stand_in.start(recipe_path, tmp_path / "runs")
    wait_for(tmp_path / "grandchild.pid")
    first.kill()
    assert finish(first)[0] == -signal.SIGKILL
    folder = run_folder(tmp_path)
    assert not (folder / "distill").exists()
    assert list(folder.glob(".partial-distill-*"))  # what the next run has to clear away
    (kept,) = folder.glob(".resume-distill-*")  # what the next run goes on from
    foreign = kept.with_name(".resume-distill-0123456789abcdef")  # of other settings, code or inputs
    foreign.mkdir()

    monkeypatch.delenv("STAND_IN_FAULT")
    stand_in.ran()
    code, out, err = finish(stand_in.start(recipe_path, tmp_path / "runs", "--json"))
    assert code == 0, err
    assert stand_in.ran() == ["distill", "export", "verify", "evaluate", "bench"]
    assert [row["cached"] for row in json.loads(out)["stages"]] == [True] + [False] * 5
    assert not list(folder.glob(".partial-*"))
    assert not list(folder.glob(".resume-*"))
    assert (tmp_path / "resumed.txt").read_text(encoding="utf-8").split() == ["False", "True"]


def test_interrupt_ends_the_children_leaves_nothing_and_exits_130(
    recipe_path, tmp_path, stand_in, monkeypatch
):
    monkeypatch.setenv("STAND_IN_FAULT", "distill:sleep")
    process = stand_in.start(recipe_path, tmp_path / "runs")
    wait_for(tmp_path / "grandchild.pid")
    process.send_signal(signal.SIGINT)
    code, out, err = finish(process)
    assert code == 130
    assert out == ""
    assert (
        err.splitlines()[-1]
        == "error: interrupted; the next `ammd run` continues with the stage that was cut off"
    )
    assert "Traceback" not in err
    assert not list(run_folder(tmp_path).glob(".partial-*"))
    assert not (run_folder(tmp_path) / "distill").exists()


def test_second_process_in_the_same_run_waits_and_finds_it_finished(
    recipe_path, tmp_path, stand_in, monkeypatch
):
    monkeypatch.setenv("STAND_IN_FAULT", "distill:hold")
    first = stand_in.start(recipe_path, tmp_path / "runs", "--json")
    wait_for(tmp_path / "holding")
    second = stand_in.start(recipe_path, tmp_path / "runs", "--json")
    said = second.stderr.readline()
    assert said.startswith(f"another `ammd` (process {first.pid}) is working in `")
    assert said.endswith("`; waiting for it\n")
    (tmp_path / "go").touch()
    (code, made, _), (second_code, found, err) = finish(first), finish(second)
    assert (code, second_code) == (0, 0), err
    assert stand_in.ran() == ["prepare", "distill", "export", "verify", "evaluate", "bench"]
    assert [row["cached"] for row in json.loads(found)["stages"]] == [True] * 6
    assert json.loads(found)["artifacts"] == json.loads(made)["artifacts"]


def test_second_process_in_the_same_run_is_refused_in_one_line_if_it_is_not_to_wait(
    recipe_path, tmp_path, stand_in, monkeypatch
):
    monkeypatch.setenv("STAND_IN_FAULT", "distill:sleep")
    first = stand_in.start(recipe_path, tmp_path / "runs")
    wait_for(tmp_path / "grandchild.pid")
    code, out, err = finish(stand_in.start(recipe_path, tmp_path / "runs", "--no-wait"))
    first.send_signal(signal.SIGINT)
    finish(first)
    assert code == 3
    assert out == ""
    assert f"error: another `ammd` (process {first.pid}) is working in" in err
    assert "hint: wait until it ends" in err


def test_stage_holds_the_lock_of_its_run_too(recipe_path, tmp_path, stand_in, monkeypatch):
    """So that no run begins beside the processes of a killed one, which end a little later."""
    monkeypatch.setenv("STAND_IN_FAULT", "distill:sleep")
    first = stand_in.start(recipe_path, tmp_path / "runs")
    wait_for(tmp_path / "grandchild.pid")
    worker = (tmp_path / "child.pid").read_text(encoding="utf-8")
    opened = [path.readlink() for path in Path("/proc", worker, "fd").iterdir() if path.is_symlink()]
    assert run_folder(tmp_path) / ".lock" in opened
    assert is_locked(run_folder(tmp_path))
    first.kill()
    finish(first)


@contextmanager
def taken_as(handler, number):
    """What processes that are started now do about a signal, whatever these tests were started with (`nohup`)."""
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signal_to_end_is_taken_like_an_interrupt(recipe_path, tmp_path, stand_in, monkeypatch, number):
    monkeypatch.setenv("STAND_IN_FAULT", "distill:sleep")
    with taken_as(signal.SIG_DFL, number):
        process = stand_in.start(recipe_path, tmp_path / "runs")
    wait_for(tmp_path / "grandchild.pid")
    process.send_signal(number)
    code, _, err = finish(process)
    assert code == 128 + number
    assert err.splitlines()[-1].startswith("error: interrupted; ")
    assert not list(run_folder(tmp_path).glob(".partial-*"))


def test_a_closed_terminal_ends_no_run_that_nohup_started(recipe_path, tmp_path, stand_in, monkeypatch):
    monkeypatch.setenv("STAND_IN_FAULT", "distill:sleep")
    with taken_as(signal.SIG_IGN, signal.SIGHUP):
        process = stand_in.start(recipe_path, tmp_path / "runs")
    wait_for(tmp_path / "grandchild.pid")
    status = Path("/proc", str(process.pid), "status").read_text(encoding="utf-8")
    (ignored,) = [line.split()[1] for line in status.splitlines() if line.startswith("SigIgn:")]
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    assert finish(process)[0] == 128 + signal.SIGTERM
    # Both signals at once end it with the second's code, so that code alone would prove nothing.
    assert int(ignored, 16) & 1 << (signal.SIGHUP - 1)


@pytest.mark.parametrize(
    ("stage", "fault"),
    [
        *((stage, "full-disk") for stage in STAGES),
        ("distill", "full-disk-elsewhere"),
        ("distill", "map"),  # which ends the process with SIGBUS
    ],
)
def test_full_disk_is_one_line_with_the_folder_and_the_next_run_goes_on(
    recipe_path, tmp_path, stand_in, monkeypatch, stage, fault
):
    monkeypatch.setenv("STAND_IN_FAULT", f"{stage}:{fault}")
    code, out, err = finish(stand_in.start(recipe_path, tmp_path / "runs"))
    assert (code, out) == (3, "")
    line, hint = err.splitlines()[-2:]
    assert line.startswith("error: no space left on the disk of `/")
    assert hint.startswith("hint: free some space there; ")
    assert "Traceback" not in err
    assert not (run_folder(tmp_path) / stage).exists()
    assert not list(run_folder(tmp_path).glob(".partial-*"))
    done = stand_in.ran()[:-1]
    monkeypatch.delenv("STAND_IN_FAULT")
    code, _, err = finish(stand_in.start(recipe_path, tmp_path / "runs"))
    assert code == 0, err
    assert not set(stand_in.ran()) & set(done)


def test_lock_is_free_after_its_holder_was_killed(recipe_path, tmp_path, stand_in, monkeypatch):
    monkeypatch.setenv("STAND_IN_FAULT", "distill:sleep")
    process = stand_in.start(recipe_path, tmp_path / "runs")
    wait_for(tmp_path / "grandchild.pid")
    process.kill()
    finish(process)
    with run_lock(run_folder(tmp_path)):
        pass


@pytest.mark.parametrize("fault", ["export:kill", "export:raise"])
def test_broken_stage_ends_with_its_code_and_no_traceback(
    recipe_path, tmp_path, stand_in, monkeypatch, fault
):
    monkeypatch.setenv("STAND_IN_FAULT", fault)
    code, out, err = finish(stand_in.start(recipe_path, tmp_path / "runs"))
    assert code == 5
    assert out == ""
    assert err.splitlines()[-2].startswith("error: ")
    assert err.splitlines()[-1].startswith("hint: ")
    assert "Traceback" not in err


def test_debug_shows_the_traceback_of_the_stage(recipe_path, tmp_path, stand_in, monkeypatch):
    monkeypatch.setenv("STAND_IN_FAULT", "export:unexpected")
    code, _, err = finish(stand_in.start(recipe_path, tmp_path / "runs", "--debug"))
    assert code == 5
    assert "ZeroDivisionError: by nought" in err
    assert "stand_in_stages.py" in err
