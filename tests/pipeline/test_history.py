"""The history: what it knows of a run, that it follows the folders, and that nothing spoils it."""

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

from ammd.errors import ArtifactError, ParityError
from ammd.pipeline import history_file
from ammd.pipeline.history_file import MIGRATIONS, open_history
from ammd.pipeline.prune import Rules, plan_prune
from ammd.pipeline.recipe import load_recipe
from ammd.pipeline.run import run_recipe
from ammd.pipeline.runs_list import list_runs


@pytest.fixture
def run(tmp_path, recipe_path, stand_in):
    """Run the recipe with overrides and return the summary."""

    def run(*overrides, until="report"):
        recipe = load_recipe(recipe_path, overrides=overrides)
        return run_recipe(recipe, runs_dir=tmp_path / "runs", until=until, stages=stand_in.stages)

    return run


@pytest.fixture
def listed(tmp_path):
    """Return the rows of the history."""

    def listed(**options):
        return list_runs(tmp_path / "runs", **options)["runs"]

    return listed


def wait_for(path):
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.05)


def test_a_finished_run_is_there_with_settings_hashes_versions_metrics_and_costs(run, listed):
    summary = run()
    columns = [
        "distill.objective.kind",
        "export.schemes",
        "distill.divide_student",
        "data.teacher",
        "versions.torch",
        "metrics.gguf-q8_0.rouge_l",
        "best.file",
        "costs.trained_tokens",
        "stages.export.seconds",
        "origin.student_sha256",
    ]
    (row,) = listed(columns=columns)
    assert (row["run"], row["state"]) == (summary["run"], "finished")
    assert row["started"] <= row["ended"]
    assert [row[key] for key in columns[:3]] == ["ammd", ["gguf-f16", "gguf-q8_0"], "false"]
    assert row["data.teacher"].startswith("sha256:")
    assert row["versions.torch"] == summary["versions"]["torch"]
    assert row["metrics.gguf-q8_0.rouge_l"] == 0.4
    assert row["best.file"] == "gguf-f16"  # as good as the other, and a byte smaller
    assert row["costs.trained_tokens"] == summary["costs"]["trained_tokens"]
    assert row["stages.export.seconds"] == summary["stages"][2]["seconds"]
    assert row["origin.student_sha256"] == summary["origin"]["student_sha256"]


def test_a_failed_run_says_where_why_and_with_which_code(run, listed, monkeypatch):
    monkeypatch.setenv("STAND_IN_FAULT", "verify:raise")
    with pytest.raises(ParityError):
        run()
    (row,) = listed()
    assert [row[key] for key in ("state", "stage", "message", "exit_code")] == [
        "failed",
        "verify",
        "`x` differs",
        5,
    ]
    assert row["stages"] == ["prepare", "distill", "export"]
    monkeypatch.delenv("STAND_IN_FAULT")
    run()
    (row,) = listed()
    assert [row[key] for key in ("state", "stage", "message", "exit_code")] == ["finished", None, None, None]


def test_a_run_is_running_then_interrupted_then_killed(recipe_path, tmp_path, stand_in, monkeypatch, listed):
    monkeypatch.setenv("STAND_IN_FAULT", "distill:sleep")

    def state_then(number):
        (tmp_path / "grandchild.pid").unlink(missing_ok=True)
        process = stand_in.start(recipe_path, tmp_path / "runs")
        wait_for(tmp_path / "grandchild.pid")
        (row,) = listed()
        process.send_signal(number)
        process.communicate(timeout=600)
        return row["state"]

    assert state_then(signal.SIGINT) == "running"
    (row,) = listed()
    assert [row[key] for key in ("state", "stage", "exit_code")] == ["interrupted", "distill", 130]
    assert state_then(signal.SIGKILL) == "running"
    (row,) = listed()
    assert [row[key] for key in ("state", "message", "ended")] == ["interrupted", "killed", None]


def test_a_lost_history_is_made_anew_from_the_folders(run, listed, tmp_path, monkeypatch):
    run()
    run("seed=8", until="distill")
    monkeypatch.setenv("STAND_IN_FAULT", "export:raise")
    with pytest.raises(ParityError):
        run("seed=9")
    before = listed()
    assert [row["state"] for row in before] == ["failed", "unfinished", "finished"]
    (tmp_path / "runs" / "history.sqlite").unlink()
    assert listed() == before


def test_runs_of_a_version_without_log_or_history_are_found(run, listed, tmp_path):
    folder = tmp_path / "runs" / run()["run"]
    (tmp_path / "runs" / "history.sqlite").unlink()
    (folder / "log.jsonl").unlink()
    os.utime(folder / "recipe.toml", (1_764_000_000, 1_764_000_000))
    (row,) = listed()
    assert [row[key] for key in ("state", "started", "stage")] == ["finished", "2025-11-24T16:00:00Z", None]


def test_a_run_that_was_copied_here_is_found_and_one_that_was_moved_away_is_gone(run, listed, tmp_path):
    folder = tmp_path / "runs" / run()["run"]
    shutil.copytree(folder, tmp_path / "runs" / "other" / "12345678")
    assert {row["run"]: row["state"] for row in listed()} == {
        f"tiny/{folder.name}": "finished",
        "other/12345678": "finished",
    }
    away = folder.rename(tmp_path / "away")
    assert [row["state"] for row in listed(filters=["run~tiny"])] == ["gone"]
    assert listed(filters=["run~tiny"])[0]["costs.seconds"] > 0
    away.rename(folder)
    assert [row["state"] for row in listed(filters=["run~tiny"])] == ["finished"]


def test_a_stage_that_goes_is_noticed(run, listed, tmp_path):
    folder = tmp_path / "runs" / run()["run"]
    before = listed()[0]["bytes"]
    shutil.rmtree(folder / "export")
    (row,) = listed()
    assert "export" not in row["stages"]
    assert row["bytes"] < before


@pytest.mark.parametrize("name", ["summary.json", "recipe.toml", "bench/manifest.json"])
@pytest.mark.parametrize(
    "text", ["{", "[]", '{"models": 7, "artifacts": [1]}', '{"models": [{"name": "x"}]}', "\0"]
)
def test_files_of_any_other_form_do_not_stop_the_list(run, listed, tmp_path, name, text):
    folder = tmp_path / "runs" / run()["run"]
    (tmp_path / "runs" / "history.sqlite").unlink()
    (folder / name).write_text(text, encoding="utf-8")
    assert listed()[0]["run"] == f"tiny/{folder.name}"


def test_values_that_sqlite_cannot_hold_are_kept_as_text(tmp_path, listed):
    folder = tmp_path / "runs" / "odd" / "1"
    folder.mkdir(parents=True)
    (folder / "recipe.toml").write_text(
        f"seed = {10**30}\nname = 'odd'\nlr = nan\nlong = -inf\n", encoding="utf-8"
    )
    (folder / "summary.json").write_text('{"origin": {"student_sha256": "\\ud800"}}', encoding="utf-8")
    columns = ["seed", "lr", "long", "origin.student_sha256"]
    assert [listed(columns=columns)[0][key] for key in columns] == [str(10**30), "nan", "-inf", "?"]


def test_an_older_file_is_migrated_and_a_newer_one_refused(run, listed, tmp_path):
    run()
    newer = (*MIGRATIONS, ("ALTER TABLE runs ADD COLUMN note TEXT", "UPDATE runs SET note = run"))
    with open_history(tmp_path / "runs", migrations=newer) as connection:
        assert connection.execute("SELECT note FROM runs").fetchone()[0].startswith("tiny/")
        assert connection.execute("PRAGMA user_version").fetchone() == (2,)
    with pytest.raises(ArtifactError, match="has version 2, this ammd knows versions up to 1") as caught:
        listed()
    assert caught.value.hint == "update ammd"


def test_a_migration_that_fails_changes_nothing(run, tmp_path):
    run()
    broken = (*MIGRATIONS, ("ALTER TABLE runs ADD COLUMN note TEXT", "UPDATE nowhere SET x = 1"))
    with (
        pytest.raises(ArtifactError, match="no such table: nowhere"),
        open_history(tmp_path / "runs", migrations=broken),
    ):
        pass
    with open_history(tmp_path / "runs") as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
        assert "note" not in [row[1] for row in connection.execute("PRAGMA table_info(runs)")]


def _garbage(path):
    path.write_bytes(bytes(range(256)) * 64)


def _half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _holes(path):
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    path.write_bytes(content)


def _foreign(path):
    path.unlink()
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE bookmarks (url TEXT)")
    connection.commit()
    connection.close()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_garbage, "is damaged: file is not a database"),
        (_half, "is damaged: database disk image is malformed"),
        (_holes, "is damaged: database disk image is malformed"),
        (_foreign, "is a database, but no history of ammd"),
    ],
)
def test_a_damaged_history_is_one_line_and_stays_as_it_is(
    run, ammd, tmp_path, recipe_path, stand_in, spoil, message
):
    run()
    stand_in.ran()
    path = tmp_path / "runs" / "history.sqlite"
    spoil(path)
    before = path.read_bytes()
    code, out, err = ammd("runs", "--runs-dir", tmp_path / "runs")
    assert (code, out) == (3, "")
    assert message in err.splitlines()[0]
    assert err.splitlines()[1].startswith("hint: move it away")
    with pytest.raises(ArtifactError, match="history"):
        run("seed=1")
    assert stand_in.ran() == []  # before any work
    assert path.read_bytes() == before


def test_a_row_of_another_type_is_damage_to_all_who_read_it(run, listed, tmp_path):
    run()
    with contextlib.closing(sqlite3.connect(tmp_path / "runs" / "history.sqlite")) as history, history:
        history.execute("UPDATE runs SET state = x'00'")  # SQLite keeps bytes in a column of text
    with pytest.raises(ArtifactError, match="is damaged: a row is none of ours"):
        listed()
    with pytest.raises(ArtifactError, match="is damaged: a row is none of ours"):
        plan_prune(tmp_path / "runs", Rules(keep=1))


def test_a_history_that_others_hold_does_not_stop_a_run_or_a_list(run, listed, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(history_file, "_BUSY_S", 0.05)
    first = run()
    holder = sqlite3.connect(tmp_path / "runs" / "history.sqlite", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    second = run("bench.repetitions=2")
    assert "the history misses this run for now" in caplog.text
    assert {row["run"] for row in listed()} == {first["run"], second["run"]}  # in memory alone
    holder.execute("ROLLBACK")
    assert len(holder.execute("SELECT run FROM runs").fetchall()) == 1
    assert {row["run"]: row["state"] for row in listed()} == {
        first["run"]: "finished",
        second["run"]: "finished",
    }
    assert len(holder.execute("SELECT run FROM runs").fetchall()) == 2
    holder.close()


WRITER = """
import sys
from pathlib import Path
from ammd.pipeline.history import record_begin
for number in range(int(sys.argv[3])):
    folder = Path(sys.argv[1], sys.argv[2], str(number))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.toml").write_text(f"seed = {number}\\n" + "".join(f"key_{k} = {k}\\n" for k in range(99)))
    (folder / "summary.json").write_text("{}")
    record_begin(folder)
    print(folder.parent.name + "/" + folder.name, flush=True)
"""


def start_writer(tmp_path, name, count):
    command = [sys.executable, "-c", WRITER, str(tmp_path / "runs"), name, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def check_whole(tmp_path):
    with open_history(tmp_path / "runs") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_processes_that_write_at_once_lose_nothing(tmp_path, listed):
    writers = [start_writer(tmp_path, f"p{index}", 12) for index in range(4)]
    ends = [writer.communicate(timeout=300) for writer in writers]
    assert [err for _, err in ends] == [""] * 4  # no warning either
    with open_history(tmp_path / "runs") as connection:
        found = connection.execute("SELECT run, state, folder_ns IS NOT NULL FROM runs").fetchall()
        facts = connection.execute("SELECT run, count(*) FROM facts GROUP BY run").fetchall()
    assert sorted(found) == sorted((f"p{i}/{n}", "finished", 1) for i in range(4) for n in range(12))
    assert [count for _, count in facts] == [1 + 99 + 2] * 48  # the settings, `stages` and `bytes`
    check_whole(tmp_path)


def test_writers_that_are_killed_leave_a_whole_file_and_what_they_had_said(tmp_path):
    said = set()
    for attempt in range(6):
        writer = start_writer(tmp_path, f"k{attempt}", 100_000)
        for _ in range(3 + attempt):
            said.add(writer.stdout.readline().strip())
        time.sleep(0.003 * attempt)
        writer.kill()
        said |= set(writer.communicate()[0].split("\n")[:-1])
        assert writer.returncode == -signal.SIGKILL
    check_whole(tmp_path)
    with open_history(tmp_path / "runs") as connection:
        finished = {run for (run,) in connection.execute("SELECT run FROM runs WHERE state = 'finished'")}
    assert said <= finished
    assert len(said) >= 30


def test_the_summary_is_the_one_that_the_history_was_told(run, listed):
    """What `ammd runs` prints of a run is in its summary, under the keys of the summary."""
    summary = run()
    (row,) = listed(columns=[f"costs.{key}" for key, value in summary["costs"].items() if value is not None])
    told = {key.removeprefix("costs."): value for key, value in row.items() if key.startswith("costs.")}
    assert told == {key: value for key, value in summary["costs"].items() if value is not None}
    assert json.loads(json.dumps(row)) == row
