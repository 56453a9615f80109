"""Real processes, really killed: nothing half-written stays, and the next run goes on."""

import json
import signal
import time

import pytest

from ammd.pipeline.cache import run_lock


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


def test_second_process_in_the_same_run_is_refused_in_one_line(recipe_path, tmp_path, stand_in, monkeypatch):
    monkeypatch.setenv("STAND_IN_FAULT", "distill:sleep")
    first = stand_in.start(recipe_path, tmp_path / "runs")
    wait_for(tmp_path / "grandchild.pid")
    code, out, err = finish(stand_in.start(recipe_path, tmp_path / "runs"))
    first.send_signal(signal.SIGINT)
    finish(first)
    assert code == 3
    assert out == ""
    assert "error: another `ammd` is working in" in err
    assert "hint: wait until it ends" in err


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
