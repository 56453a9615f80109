"""Pruning: what the rules choose, what it frees, and what is never touched."""

import json
import os
import shutil
import subprocess
import time

import pytest

from ammd.errors import ArtifactError, RecipeError
from ammd.folder_lock import folder_lock
from ammd.pipeline.prune import Rules, plan_prune, prune_runs, read_age
from ammd.pipeline.recipe import load_recipe
from ammd.pipeline.run import run_recipe
from ammd.pipeline.runs import set_reference
from ammd.pipeline.runs_list import list_runs

DAY_S = 86_400


@pytest.fixture
def runs_dir(tmp_path):
    return tmp_path / "runs"


@pytest.fixture
def make(runs_dir):
    """Write a run's folder by hand: so many days old, finished or not."""

    def make(run, *, days=0.0, finished=True):
        folder = runs_dir / run
        folder.mkdir(parents=True)
        (folder / "recipe.toml").write_text("seed = 1\n", encoding="utf-8")
        if finished:
            (folder / "summary.json").write_text("{}", encoding="utf-8")
        begun = time.time() - DAY_S * days
        os.utime(folder / "recipe.toml", (begun, begun))
        return folder

    return make


def pruned(runs_dir, **rules):
    plan = plan_prune(runs_dir, Rules(**rules))
    return sorted(prune_runs(runs_dir, plan))


def states(runs_dir):
    return {row["run"]: row["state"] for row in list_runs(runs_dir)["runs"]}


def taken(folder):
    """What the system's own tool says of a folder, each file once."""
    done = subprocess.run(["du", "-s", "-B1", folder], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[0])


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ({"keep": 1}, {"a/old", "a/mid", "b/cut"}),
        ({"keep": 0}, {"a/new", "a/mid", "a/old", "b/one", "b/cut"}),
        ({"older_than": "30d"}, {"a/old", "b/cut"}),
        ({"older_than": "5w"}, {"a/old"}),
        ({"older_than": "47h"}, {"a/mid", "a/old", "b/one", "b/cut"}),
        ({"unfinished": True}, {"b/cut"}),
        ({"keep": 2, "older_than": "30d"}, {"a/old"}),
        ({"unfinished": True, "older_than": "90d"}, set()),
        ({"runs": ("a/mid",)}, {"a/mid"}),
        ({"runs": ("a/mid", "a/new"), "older_than": "2d"}, {"a/mid"}),
        ({"runs": ("a/new", "a/mid"), "keep": 1}, {"a/mid"}),
    ],
)
def test_a_run_goes_if_it_meets_every_rule(runs_dir, make, rules, expected):
    make("a/new", days=1)
    make("a/mid", days=10)
    make("a/old", days=50)
    make("b/one", days=3)
    make("b/cut", days=31, finished=False)
    if age := rules.get("older_than"):
        rules = {**rules, "older_than": read_age(age)}
    before = states(runs_dir)
    assert set(pruned(runs_dir, **rules)) == expected
    assert states(runs_dir) == {run: "pruned" if run in expected else state for run, state in before.items()}
    assert {run for run in before if (runs_dir / run).exists()} == set(before) - expected


def test_what_it_frees_is_what_the_system_has_more(runs_dir, recipe_path, stand_in):
    def run(*overrides):
        recipe = load_recipe(recipe_path, overrides=overrides)
        return run_recipe(recipe, runs_dir=runs_dir, stages=stand_in.stages)["run"]

    first, second = run(), run("bench.repetitions=2")  # shares all but the last stage
    for name in (first, second):
        before = taken(runs_dir / "tiny")
        plan = plan_prune(runs_dir, Rules(runs=(name,)))
        assert prune_runs(runs_dir, plan) == [name]
        assert plan.total_bytes == before - taken(runs_dir / "tiny")
    both = [run(), run("bench.repetitions=2")]
    before = taken(runs_dir / "tiny")
    plan = plan_prune(runs_dir, Rules(keep=0))
    assert sorted(prune_runs(runs_dir, plan)) == sorted(both)
    assert plan.total_bytes == before - taken(runs_dir / "tiny")
    assert set(states(runs_dir).values()) == {"pruned"}


def test_a_pruned_run_is_still_told_of_and_can_be_made_again(runs_dir, recipe_path, stand_in):
    recipe = load_recipe(recipe_path)
    summary = run_recipe(recipe, runs_dir=runs_dir, stages=stand_in.stages)
    pruned(runs_dir, keep=0)
    (row,) = list_runs(runs_dir)["runs"]
    assert (row["state"], row["costs.seconds"]) == ("pruned", summary["costs"]["seconds"])
    assert row["pruned"] is not None
    run_recipe(recipe, runs_dir=runs_dir, stages=stand_in.stages)
    (row,) = list_runs(runs_dir)["runs"]
    assert (row["state"], row["pruned"]) == ("finished", None)


def test_a_run_that_is_held_stays(runs_dir, make):
    folder = make("a/1")
    make("a/2")
    with folder_lock(folder, wait=False):
        plan = plan_prune(runs_dir, Rules(keep=0))
        assert plan.kept == {"a/1": "a process works in it"}
    with folder_lock(folder, wait=False):  # one that began after the plan was made
        plan = plan_prune(runs_dir, Rules(runs=("a/2",)))
        late = plan_prune(runs_dir, Rules(keep=0))
        assert late.doomed == plan.doomed
    full = plan_prune(runs_dir, Rules(keep=0))
    with folder_lock(folder, wait=False):
        assert prune_runs(runs_dir, full) == ["a/2"]
    assert folder.is_dir()


def test_a_run_that_a_reference_names_stays_and_its_snapshots_may_go(runs_dir, make):
    folder = make("a/1")
    set_reference("main", folder, runs_dir=runs_dir)
    assert plan_prune(runs_dir, Rules(keep=0)).kept == {"a/1": "`main` stands for it"}
    (folder / ".resume-distill-0123").mkdir()
    assert pruned(runs_dir, snapshots=True) == ["a/1"]
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "recipe.toml", "summary.json"]


def test_snapshots_go_from_finished_runs_alone(runs_dir, make):
    for run, finished in (("a/done", True), ("a/cut", False)):
        folder = make(run, finished=finished) / ".resume-distill-0123"
        folder.mkdir()
        (folder / "tensors").write_bytes(bytes(100_000))
    plan = plan_prune(runs_dir, Rules(snapshots=True))
    assert plan.total_bytes >= 100_000
    assert prune_runs(runs_dir, plan) == ["a/done"]
    assert (runs_dir / "a/cut/.resume-distill-0123/tensors").is_file()
    assert states(runs_dir) == {"a/done": "finished", "a/cut": "unfinished"}


def test_nothing_outside_the_run_folders_is_touched(runs_dir, make, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").touch()
    (make("a/1") / "link").symlink_to(outside)
    shutil.copytree(make("a/2"), tmp_path / "elsewhere" / "3")
    (runs_dir / "a" / "linked").symlink_to(tmp_path / "elsewhere" / "3")
    (runs_dir / "b").symlink_to(tmp_path / "elsewhere")
    (runs_dir / "a" / "notes").mkdir()  # no run: it has no recipe
    plan = plan_prune(runs_dir, Rules(keep=0))
    assert set(plan.kept.values()) == {"it lies elsewhere, behind a symbolic link"}
    assert set(plan.kept) == {"a/linked", "b/3"}
    assert sorted(prune_runs(runs_dir, plan)) == ["a/1", "a/2"]
    assert (outside / "precious").is_file()
    assert (tmp_path / "elsewhere" / "3" / "recipe.toml").is_file()
    assert (runs_dir / "a" / "notes").is_dir()
    with pytest.raises(ArtifactError, match="does not lie in"):
        plan_prune(runs_dir, Rules(runs=(str(tmp_path / "elsewhere" / "3"),)))


def test_what_a_killed_prune_has_left_is_removed_by_the_next(runs_dir, make):
    make("a/1")
    make("a/2").rename(runs_dir / "a" / ".pruned-2")
    assert set(states(runs_dir)) == {"a/1"}
    pruned(runs_dir, keep=0)
    assert list((runs_dir / "a").iterdir()) == []


@pytest.mark.parametrize("text", ["", "30", "d", "1.5d", "-3d", "30 days", "9999999w", "٣d"])
def test_what_is_no_age_is_refused(text):
    with pytest.raises(RecipeError, match="is no age"):
        read_age(text)


def test_the_command_shows_first_and_removes_only_when_told(ammd, runs_dir, make):
    make("a/1")
    options = ("--runs-dir", runs_dir)
    code, out, err = ammd("runs", "prune", "--keep", 0, "--dry-run", *options)
    assert (code, err) == (0, "")
    assert "a/1" in out
    code, out, err = ammd("runs", "prune", "--keep", 0, *options)
    assert code == 2
    assert err.splitlines() == [
        "error: nothing is removed: there is nobody to ask",
        "hint: `--yes` removes, `--dry-run` only shows",
    ]
    assert (runs_dir / "a/1").is_dir()
    code, out, err = ammd("runs", "prune", "--keep", 0, "--yes", "--json", *options)
    document = json.loads(out)
    assert (code, document["schema"]) == (0, "ammd.prune/1")
    assert [(row["run"], row["removed"]) for row in document["runs"]] == [("a/1", True)]
    assert document["freed_bytes"] == document["freeable_bytes"] > 0
    assert not (runs_dir / "a/1").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["prune"], 2, "error: `ammd runs prune` needs to be told what may go"),
        (["prune", "none"], 3, "error: there is no run `none`"),
        (["prune", "--older-than", "soon"], 2, "error: `soon` is no age"),
        (["--json", "prune", "--keep", "1"], 2, "error: options go behind `prune`"),
        (["drop"], 2, "error: No such command 'drop'"),
    ],
)
def test_usage_faults(ammd, tmp_path, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    found, out, err = ammd("runs", *arguments)
    assert (found, out) == (code, "")
    assert err.startswith(message)
