"""Sweeps on stand-in stages: shared stages made once, side by side within limits, faults that stay in their run."""

import json
import os
import signal
import time

import psutil
import pytest

from ammd.errors import DistillError, RecipeError
from ammd.pipeline.sweep import load_sweep
from ammd.pipeline.sweep_document import check_sweep, parse_sort
from ammd.pipeline.sweep_run import run_sweep

SEEDS = "distill.seed=[0, 1, 2]"


@pytest.fixture
def sweep(tmp_path, recipe_path, stand_in, monkeypatch):
    """Run the recipe's sweep with overrides; `sweep.spans()` gives what began and ended, in order."""
    monkeypatch.setenv("STAND_IN_SPANS", str(tmp_path / "spans.jsonl"))

    def sweep(*overrides, **options):
        chosen = load_sweep(recipe_path, overrides=overrides)
        return run_sweep(chosen, runs_dir=tmp_path / "runs", stages=stand_in.stages, **options)

    def spans():
        return list(map(json.loads, (tmp_path / "spans.jsonl").read_text(encoding="utf-8").splitlines()))

    sweep.spans = spans
    return sweep


def count(names):
    return {name: names.count(name) for name in dict.fromkeys(names)}


@pytest.mark.parametrize("jobs", [None, 3])
def test_shared_stages_are_made_once_and_each_run_is_whole(sweep, stand_in, jobs):
    document = sweep(SEEDS, "bench.repetitions=[3, 5]", jobs=jobs)
    assert count(stand_in.ran()) == {
        "prepare": 1,
        "distill": 3,
        "export": 3,
        "verify": 3,
        "evaluate": 3,
        "bench": 6,
    }
    assert (document["schema"], document["exit_code"]) == ("ammd.sweep/1", 0)
    assert len({row["run"] for row in document["runs"]}) == 6
    for row in document["runs"]:
        assert (row["state"], row["exit_code"], len(row["stages"])) == ("finished", 0, 6)
        assert row["models"]["student"]["rouge_l"] == 0.4
        assert row["models"]["gguf-q8_0"]["decode_tokens_per_s"] == 100.0
    assert document["runs"][3]["choices"] == {"distill.seed": 1, "bench.repetitions": 5}
    again = sweep(SEEDS, "bench.repetitions=[3, 5]", jobs=jobs)
    assert stand_in.ran() == []
    assert all(stage["cached"] for row in again["runs"] for stage in row["stages"])


def test_jobs_work_side_by_side_on_their_share_and_measurements_alone(sweep, monkeypatch):
    monkeypatch.setenv("STAND_IN_MEET", "distill:2")  # neither ends before both have begun
    monkeypatch.setenv("OMP_NUM_THREADS", "64")  # meant for one process by itself
    assert sweep("distill.seed=[0, 1]", jobs=2)["exit_code"] == 0
    working, most = set(), 0
    for span in sweep.spans():
        if span["what"] == "begin":
            working.add(span["pid"])
            most = max(most, len(working))
            assert span["stage"] != "bench" or len(working) == 1
        else:
            assert span["stage"] != "bench" or len(working) == 1
            working.remove(span["pid"])
    assert most == 2
    cores = len(os.sched_getaffinity(0))
    first, second = (span for span in sweep.spans() if (span["what"], span["stage"]) == ("begin", "distill"))
    assert len(first["cpus"]) == len(second["cpus"]) == int(first["threads"]) == max(1, cores // 2)
    assert cores == 1 or set(first["cpus"]).isdisjoint(second["cpus"])
    bench = next(span for span in sweep.spans() if span["stage"] == "bench")
    assert len(bench["cpus"]) == cores


def test_memory_limits_what_is_made_at_once(sweep, monkeypatch):
    # Each stage is estimated at a little more than 1 GiB: one fits, two do not.
    assert sweep(SEEDS, jobs=3, memory="1.5 GiB")["exit_code"] == 0
    working = 0
    for span in sweep.spans():
        working += 1 if span["what"] == "begin" else -1
        assert working <= 1


def test_stage_that_needs_more_than_the_sweep_has_is_refused_before_any_work(sweep, stand_in):
    with pytest.raises(DistillError, match=r"needs about 1.0 GiB of memory, 0.5 GiB are the sweep's"):
        sweep(SEEDS, memory="512 MiB")
    with pytest.raises(RecipeError, match=r"`--memory` = `much`: should be a number"):
        sweep(SEEDS, memory="much")
    assert stand_in.ran() == []


def test_a_failed_run_leaves_the_others_alone_and_the_worst_code_counts(sweep, monkeypatch):
    monkeypatch.setenv("STAND_IN_FAULT", "distill@1:unexpected")
    document = sweep(SEEDS, jobs=2)
    assert [row["exit_code"] for row in document["runs"]] == [0, 4, 0]
    assert [row["state"] for row in document["runs"]] == ["finished", "failed", "finished"]
    assert "ZeroDivisionError: by nought" in document["runs"][1]["error"]
    with pytest.raises(DistillError, match=r"1 of 3 runs failed; `tiny/\w{8}`: stage `distill` failed"):
        check_sweep(document)
    monkeypatch.delenv("STAND_IN_FAULT")
    document = sweep(SEEDS, jobs=2)
    assert document["exit_code"] == 0
    check_sweep(document)


def test_a_shared_stage_that_fails_fails_once_for_all(sweep, stand_in, monkeypatch):
    monkeypatch.setenv("STAND_IN_FAULT", "prepare:raise")
    document = sweep(SEEDS, jobs=2)
    assert stand_in.ran() == ["prepare"]
    assert [(row["exit_code"], row["error"], row["hint"]) for row in document["runs"]] == [
        (5, "`x` differs", "look at it")
    ] * 3


def test_fail_fast_ends_the_others(sweep, stand_in, monkeypatch):
    monkeypatch.setenv("STAND_IN_FAULT", "distill@0:raise")
    document = sweep(SEEDS, fail_fast=True)
    assert stand_in.ran() == ["prepare", "distill"]
    assert [row["state"] for row in document["runs"]] == ["failed", "not begun", "not begun"]
    assert document["exit_code"] == 5


def test_the_best_run_comes_first_and_one_without_the_number_last(sweep):
    rows = [{"models": {"student": {"rouge_l": value, "bytes": value}}} for value in (1.0, 3.0, 2.0)]
    rows.append({"models": {}})
    for text, wanted in (("rouge_l", [3.0, 2.0, 1.0]), ("student.bytes", [1.0, 2.0, 3.0])):
        found = sorted(rows, key=parse_sort(text).rank)
        assert [row["models"]["student"]["bytes"] for row in found[:3]] == wanted
        assert found[3] == {"models": {}}
    with pytest.raises(RecipeError, match="there is no metric `speed` to sort by") as caught:
        sweep(SEEDS, sort="speed")
    assert "rouge_l" in caught.value.hint


def finish(process):
    out, err = process.communicate(timeout=600)
    return process.returncode, out, err


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_ended_sweep_ends_all_and_goes_on(recipe_path, tmp_path, stand_in, monkeypatch, wait_for_lines, how):
    options = ("--set", SEEDS, "--jobs", "2", "--json")
    monkeypatch.setenv("STAND_IN_FAULT", "distill:sleep")
    first = stand_in.start(recipe_path, tmp_path / "runs", *options)
    wait_for_lines(tmp_path / "ran.txt", 3)  # prepare, and distill twice
    first.send_signal(how)
    code, out, err = finish(first)
    assert (code, out) == (130 if how == signal.SIGINT else -how, "")
    assert "Traceback" not in err
    wait_until_gone(int((tmp_path / "grandchild.pid").read_text(encoding="utf-8")))
    assert not list((tmp_path / "runs").glob("tiny/*/distill"))
    stand_in.ran()
    monkeypatch.delenv("STAND_IN_FAULT")
    code, out, err = finish(stand_in.start(recipe_path, tmp_path / "runs", *options))
    assert code == 0, err
    assert count(stand_in.ran())["distill"] == 3
    assert {row["state"] for row in json.loads(out)["runs"]} == {"finished"}
    resumed = (tmp_path / "resumed.txt").read_text(encoding="utf-8").split()
    assert resumed.count("True") == 2


def wait_until_gone(pid):
    deadline = time.monotonic() + 60
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "a process outlived its sweep"
        time.sleep(0.05)


def test_command_prints_plan_table_and_exit_code(recipe_path, tmp_path, stand_in, monkeypatch, ammd):
    runs = tmp_path / "runs"
    code, out, _ = ammd("run", recipe_path, "--runs-dir", runs, "--set", SEEDS, "--dry-run")
    assert code == 0
    assert "tiny: 3 runs, 16 stages to make, 2 shared, 0 there already" in out
    assert not runs.exists()
    plan = json.loads(ammd("run", recipe_path, "--runs-dir", runs, "--set", SEEDS, "--dry-run", "--json")[1])
    assert [row["choices"] for row in plan["runs"]] == [{"distill.seed": seed} for seed in range(3)]

    monkeypatch.setenv("STAND_IN_FAULT", "distill@2:kill")
    code, out, err = finish(stand_in.start(recipe_path, runs, "--set", SEEDS, "--sort", "rouge_l"))
    assert code == 4
    assert "tiny: sweep" in out
    assert "exit 4: stage `distill` was killed (SIGKILL)" in " ".join(out.split())
    assert "error: 1 of 3 runs failed; `tiny/" in err.splitlines()[-2]
    assert err.splitlines()[-1].startswith("hint: ")
    code, _, err = ammd("run", recipe_path, "--runs-dir", runs, "--jobs", "2")
    assert (code, "`--jobs` is for sweeps, and no key lists values" in err) == (2, True)
