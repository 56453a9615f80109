"""`ammd watch` beside real runs that go on, end, fail, are interrupted and are killed."""

import json
import os
import pty
import signal
import subprocess
import sys
import time

import pytest

from ammd.pipeline.run_log import stage_memory
from ammd.pipeline.watch import duration, spark
from ammd.pipeline.watch_state import RunState, RunWatch, document, exit_code

COMMAND = [sys.executable, "-P", "-c", "from ammd.pipeline.cli import main; main()", "watch"]


@pytest.fixture
def runs(tmp_path):
    return tmp_path / "runs"


@pytest.fixture
def start(recipe_path, runs, stand_in, monkeypatch):
    """Start `ammd run` with a fault and wait until its distill stage sleeps, if it is to."""
    started = []

    def start(fault=""):
        monkeypatch.setenv("STAND_IN_FAULT", fault)
        process = stand_in.start(recipe_path, runs)
        started.append(process)
        if fault.endswith("sleep"):
            wait_for(lambda: (runs.parent / "grandchild.pid").exists())
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def wait_for(condition):
    deadline = time.monotonic() + 120
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def run_folder(runs):
    (folder,) = (runs / "tiny").iterdir()
    return folder


def test_running_stage_is_shown_with_its_numbers_and_its_death_is_told(ammd, start, runs):
    process = start("distill:sleep")

    def state():
        return json.loads(ammd("watch", "--runs-dir", runs, "--once", "--json")[1])

    found = wait_for(lambda: (now := state())["rss_bytes"] and now)
    assert (found["schema"], found["state"], found["exit_code"]) == ("ammd.watch/1", "running", None)
    assert found["run"] == f"tiny/{run_folder(runs).name}"
    assert found["stage"] == "distill"
    assert [stage["state"] for stage in found["stages"]] == ["done", "running", *["waiting"] * 4]
    assert found["training"]["d_on"] == 0.4
    assert (found["progress"]["label"], found["progress"]["done"], found["progress"]["total"]) == (
        "distill warm",
        1,
        4,
    )
    assert found["rss_bytes"] > 5 << 20  # more than a bare interpreter
    shown = ammd("watch", "tiny", "--runs-dir", runs, "--once")[1]
    for text in ("running for", "distill", "d off-policy", "memory, MiB", "25%"):
        assert text in shown

    process.kill()  # the lock is free then, and nobody has said how it ended
    process.communicate()
    code, out, _ = ammd("watch", "--runs-dir", runs)
    assert code == 4  # the stage's
    assert "distill: cut off" in out
    assert "its process is gone, in stage `distill`" in out.splitlines()[-1]
    found = state()
    assert (found["state"], found["exit_code"]) == ("died", 4)


def test_watch_follows_a_run_to_its_end_and_ends_as_it_does(start, runs, ammd):
    process = start()
    wait_for(lambda: list(runs.glob("*/*/log.jsonl")))
    watch = subprocess.run(
        [*COMMAND, "--runs-dir", runs], capture_output=True, text=True, check=False, timeout=120
    )
    assert process.wait(timeout=120) == 0
    assert watch.returncode == 0, watch.stderr
    lines = watch.stdout.splitlines()
    for stage in ("prepare", "distill", "export", "verify", "evaluate", "bench"):
        assert any(line.startswith(f"{stage}: done, ") for line in lines)
    assert "finished in" in lines[-1]

    start().wait(timeout=120)  # everything is there: a new session in the same log
    code, out, _ = ammd("watch", "--runs-dir", runs, "--json")
    (found,) = map(json.loads, out.splitlines())
    assert (code, found["state"], found["exit_code"]) == (0, "finished", 0)
    assert [stage["state"] for stage in found["stages"]] == ["found"] * 6


@pytest.mark.parametrize(
    ("fault", "state", "code", "stage"),
    [("export:raise", "failed", 5, "export"), ("", "interrupted", 130, None)],
)
def test_watch_ends_with_the_code_of_the_run(start, runs, ammd, fault, state, code, stage):
    process = start(fault or "distill:sleep")
    if state == "interrupted":
        process.send_signal(signal.SIGINT)
        stage = "distill"
    assert process.wait(timeout=120) == code
    found_code, out, _ = ammd("watch", "--runs-dir", runs, "--once", "--json")
    found = json.loads(out)
    assert (found_code, found["state"], found["exit_code"], found["stage"]) == (code, state, code, stage)
    if state == "failed":
        assert (found["error"], found["hint"]) == ("`x` differs", "look at it")


def test_terminal_shows_a_picture(start, runs):
    start().wait(timeout=120)
    parent, child = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
    process = subprocess.Popen([*COMMAND, "--runs-dir", str(runs)], stdout=child, env=environment)
    os.close(child)
    text = b""
    while True:
        try:
            text += os.read(parent, 4096)
        except OSError:  # the other end is closed
            break
    os.close(parent)
    assert process.wait(timeout=60) == 0
    assert "finished in" in text.decode()
    assert "peak RSS" in text.decode()


def test_whole_run_that_misses_its_budget_ends_the_watch_with_7(start, runs, ammd):
    start().wait(timeout=120)
    path = run_folder(runs) / "summary.json"
    summary = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**summary, "budget": {"met": False, "rows": []}}), encoding="utf-8")
    assert ammd("watch", "--runs-dir", runs, "--once")[0] == 7


def test_process_on_another_machine_is_judged_by_its_silence(start, runs):
    start("distill:sleep")
    folder = run_folder(runs)
    log = folder / "log.jsonl"
    first, *rest = log.read_text(encoding="utf-8").splitlines(keepends=True)
    event = json.loads(first)
    event["process"] |= {"host": "elsewhere", "pid": 1}
    # Its clock is an hour behind, and its last line is not whole yet.
    shifted = [
        {**json.loads(line), "time": json.loads(line)["time"] - 3600} for line in (json.dumps(event), *rest)
    ]
    elsewhere = runs / "tiny" / "elsewhere"
    elsewhere.mkdir()
    text = "".join(json.dumps(line) + "\n" for line in shifted)
    (elsewhere / "log.jsonl").write_text(text + '{"event": "mem', encoding="utf-8")
    watch = RunWatch(elsewhere)
    view, state, news = watch.look(silent_s=0)
    assert (state, news) == (RunState.RUNNING, True)
    assert 0 <= document(view, state)["seconds"] < 120
    assert watch.look(silent_s=30)[1:] == (RunState.SILENT, False)
    assert exit_code(view, RunState.SILENT) is None
    assert document(view, RunState.SILENT, silent_s=30)["silent_s"] == 30
    view, state, _ = watch.look(silent_s=300)
    assert (state, exit_code(view, state)) == (RunState.DIED, 4)


def test_folder_that_a_log_names_is_read_only_inside_the_run(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "curves.jsonl").write_text('{"phase": "secret"}\n', encoding="utf-8")
    folder = tmp_path / "run"
    folder.mkdir()
    process = {"pid": 1, "began": 0.0, "host": "elsewhere", "ids_of": ""}
    events = (
        {"event": "run_started", "run": "a/b", "stages": ["distill"], "process": process},
        {"event": "stage_started", "stage": "distill", "folder": "../outside"},
        {"event": "progress", "label": 3},
    )
    text = "".join(json.dumps({"time": 1.0, **event}) + "\n" for event in events)
    (folder / "log.jsonl").write_text(text, encoding="utf-8")
    view, state, _ = RunWatch(folder).look(silent_s=0)
    found = document(view, state)
    assert (found["training"], found["progress"]) == (None, None)


def test_run_without_a_log_is_refused(ammd, tmp_path):
    (tmp_path / "runs" / "old" / "1").mkdir(parents=True)
    (tmp_path / "runs" / "old" / "1" / "recipe.toml").touch()
    code, _, err = ammd("watch", "old", "--runs-dir", tmp_path / "runs")
    assert (code, err.splitlines()[0]) == (
        3,
        f"error: run `{tmp_path / 'runs' / 'old' / '1'}` has no `log.jsonl`",
    )
    assert ammd("watch", "--runs-dir", tmp_path / "runs")[0] == 3


def test_memory_of_each_stage_is_its_last_making(tmp_path):
    def write(*events):
        text = "".join(json.dumps({"time": at, **event}) + "\n" for at, event in events)
        (tmp_path / "log.jsonl").write_text(text, encoding="utf-8")

    def stage(name, at, *sizes, whole=True):
        yield at, {"event": "stage_started", "stage": name, "folder": "x"}
        for index, size in enumerate(sizes):
            yield at + 2 * (index + 1), {"event": "memory", "rss_bytes": size}
        if whole:
            yield at + 9, {"event": "stage_finished", "stage": name}

    write(
        *stage("prepare", 10.0, 5, 6),
        *stage("distill", 20.0, 1, 2, whole=False),  # killed
        *stage("distill", 40.0, 7),
        *stage("export", 50.0),  # too short for a sample
        *stage("prepare", 60.0, 8),  # made anew
        (70.0, {"event": "memory", "rss_bytes": 9}),  # between stages
    )
    found = [(one.stage, one.seconds, one.rss_bytes) for one in stage_memory(tmp_path)]
    assert found == [("distill", (2.0,), (7,)), ("prepare", (2.0,), (8,))]


def test_words_for_times_and_little_bars():
    assert [duration(seconds) for seconds in (0.04, 9.96, 59, 61, 3600, 90061)] == [
        "0.0 s",
        "10.0 s",
        "59 s",
        "1 min 1 s",
        "1 h 0 min",
        "25 h 1 min",
    ]
    assert spark([1, 2, 3]) == "▁▅█"
    assert spark([2, 2]) == "▁▁"
