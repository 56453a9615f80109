"""Filters, order and columns, on runs whose folders are written by hand."""

import json
import os
import re

import pytest

from ammd.errors import RecipeError
from ammd.pipeline.runs_list import list_runs

RUNS = {
    "quick/a": ({"seed": 1, "lr": 1e-3, "kind": "ammd"}, 0.5, 100),
    "quick/b": ({"seed": 2, "lr": 5e-4, "kind": "gjsd"}, 0.7, 300),
    "Long/c": ({"seed": 10, "kind": "ammd"}, 0.6, 200),
    "long/d": ({"seed": 3, "lr": 1e-3, "kind": "007"}, None, None),
}


@pytest.fixture
def runs_dir(tmp_path):
    for age, (run, (settings, kl, size)) in enumerate(RUNS.items()):
        folder = tmp_path / run
        folder.mkdir(parents=True)
        recipe = f'name = "{folder.parent.name}"\nseed = {settings["seed"]}\nschemes = ["f16", "q8_0"]\n[distill]\n'
        recipe += f"lr = {settings['lr']}\n" if "lr" in settings else ""
        recipe += f'divide_student = false\n[distill.objective]\nkind = "{settings["kind"]}"\n'
        (folder / "recipe.toml").write_text(recipe, encoding="utf-8")
        begun = 1_764_000_000 - 86_400 * age  # 2025-11-24, and the days before
        os.utime(folder / "recipe.toml", (begun, begun))
        if kl is None:
            continue
        quality = {"kl_to_teacher_nats": kl, "rouge_l": 0.3}
        student = {"name": "student", "bytes": size, "quality": quality}
        file = {"name": "gguf-q8_0", "bytes": size, "quality": quality, "parity": {"kl_nats": 0.01}}
        (folder / "summary.json").write_text(json.dumps({"models": [student], "artifacts": [file]}))
    return tmp_path


def found(runs_dir, *filters, **options):
    return [row["run"] for row in list_runs(runs_dir, filters=filters, **options)["runs"]]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ([], ["quick/a", "quick/b", "Long/c", "long/d"]),
        (["distill.objective.kind=ammd"], ["quick/a", "Long/c"]),
        (["distill.objective.kind!=ammd"], ["quick/b", "long/d"]),
        (["distill.objective.kind = ammd", "seed>5"], ["Long/c"]),
        (["distill.objective.kind=007"], ["long/d"]),  # text is not compared as a number
        (["distill.objective.kind=7"], []),
        (["seed=10"], ["Long/c"]),
        (["seed=1e1"], ["Long/c"]),
        (["seed<10"], ["quick/a", "quick/b", "long/d"]),  # as numbers: 10 is more than 3
        (["seed>=3"], ["Long/c", "long/d"]),
        (["metrics.student.kl<0.6"], ["quick/a"]),
        (["metrics.student.kl<=0.6"], ["quick/a", "Long/c"]),
        (["best.bytes>150"], ["quick/b", "Long/c"]),
        (
            ["best.kl>0.55"],
            ["quick/b", "Long/c"],
        ),  # to the teacher, not to the student, as the tables have it first
        (["distill.lr!=0.001"], ["quick/b", "Long/c"]),  # also what has none
        (["distill.lr=0.001"], ["quick/a", "long/d"]),
        (["name~LONG"], ["Long/c", "long/d"]),
        (["name=long"], ["long/d"]),
        (["name!~uic"], ["Long/c", "long/d"]),
        (["run~/c"], ["Long/c"]),
        (["state=finished"], ["quick/a", "quick/b", "Long/c"]),
        (["state!=finished"], ["long/d"]),
        (["schemes~q8"], ["quick/a", "quick/b", "Long/c", "long/d"]),
        (["distill.divide_student=false", "seed=3"], ["long/d"]),
        (["started>2025-11-23"], ["quick/a", "quick/b"]),
        (["exit_code!=5"], ["quick/a", "quick/b", "Long/c", "long/d"]),
        (["name~%"], []),
        (["name~'; DROP TABLE runs; --"], []),
        (["run=x' OR '1'='1"], []),
        (["run={x}"], []),
    ],
)
def test_filters(runs_dir, filters, expected):
    assert found(runs_dir, *filters) == expected
    assert len(found(runs_dir)) == 4


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"sort": "seed"}, ["quick/a", "quick/b", "long/d", "Long/c"]),
        ({"sort": "seed", "reverse": True}, ["Long/c", "long/d", "quick/b", "quick/a"]),
        ({"reverse": True}, ["long/d", "Long/c", "quick/b", "quick/a"]),
        ({"sort": "metrics.student.bytes"}, ["quick/a", "Long/c", "quick/b", "long/d"]),
        (
            {"sort": "best.kl_to", "reverse": True},
            ["quick/b", "Long/c", "quick/a", "long/d"],
        ),  # without: last
        ({"sort": "run", "limit": 2}, ["Long/c", "long/d"]),
    ],
)
def test_order(runs_dir, options, expected):
    assert found(runs_dir, **options) == expected


def test_columns_are_told_under_their_whole_names(runs_dir):
    document = list_runs(runs_dir, columns=["metrics.student.kl", "state"], limit=1)
    assert document["columns"] == ["metrics.student.kl_to_teacher_nats", "state"]
    assert document["runs"][0]["metrics.student.kl_to_teacher_nats"] == 0.5
    assert (document["total"], len(document["runs"])) == (4, 1)


@pytest.mark.parametrize(
    ("filter_", "message", "hint"),
    [
        ("seed", "filter `seed` is not of the form KEY OPERATOR VALUE", "operators are"),
        ("=3", "is not of the form", "operators are"),
        ("", "is not of the form", "operators are"),
        ("sed=3", "no run has a key `sed`", "`seed`"),
        ("lr=3", "no run has a key `lr`", "nearest: `distill.lr`"),
        ("distill.objectiv.kind=ammd", "no run has a key", "`distill.objective.kind`"),
        ("st=3", "`st` is the beginning of several keys", "there are `state`, `started`, `stage`, `stages`"),
        ("seed<many", "filter `seed<many`: `<` needs a number, not `many`", ""),
        ("started>yesterday", "`>` needs a time such as", ""),
        ("seed);DROP=3", "no run has a key `seed);DROP`", "know `run`, `state`"),
        ("\0=\0", "no run has a key", ""),
    ],
)
def test_what_is_wrong_with_a_filter_is_told_with_a_way_out(runs_dir, filter_, message, hint):
    with pytest.raises(RecipeError) as caught:
        found(runs_dir, filter_)
    assert message in str(caught.value)
    assert hint in caught.value.hint


@pytest.mark.parametrize("options", [{"sort": "sed"}, {"columns": ["sed"]}])
def test_wrong_keys_elsewhere_too(runs_dir, options):
    with pytest.raises(RecipeError, match="no run has a key `sed`"):
        found(runs_dir, **options)


def test_where_there_are_no_runs_every_question_is_answered(tmp_path):
    assert found(tmp_path / "none", "seed=3", sort="costs.seconds") == []
    assert not (tmp_path / "none").exists()


def test_the_command_prints_a_table_and_says_how_many_more(ammd, runs_dir):
    code, out, err = ammd("runs", "--runs-dir", runs_dir, "--limit", 2, "--columns", "seed,best.kl_to")
    assert code == 0
    assert re.findall(r"^ *(\w+/\w)\b", out, flags=re.MULTILINE) == ["quick/a", "quick/b"]
    assert "0.500" in out
    assert err == "2 more; `--limit 0` shows all\n"
    assert "Long/c" in ammd("runs", "--runs-dir", runs_dir, "--limit", 0)[1]


def test_a_wrong_key_is_a_usage_fault(ammd, runs_dir):
    code, out, err = ammd("runs", "--runs-dir", runs_dir, "--filter", "sed=1")
    assert (code, out) == (2, "")
    assert err == "error: no run has a key `sed`\nhint: nearest: `seed`, `started`\n"
