"""A recipe that judges by language tasks: where they are looked for, what makes the stage stale, what shows them."""

import json
import re

import pytest

from ammd.errors import RecipeError
from ammd.pipeline.recipe import load_recipe
from ammd.pipeline.run import run_recipe

TASK = """\
name = "capitals"
version = 1
description = "Capitals"
kind = "instruction"
prompt = "Capital of {country}?"
references = "capital"
data = { test = "capitals.jsonl" }
"""


@pytest.fixture
def judged(recipe_path):
    """The recipe with a task of its own and a data folder beside it."""
    folder = recipe_path.parent
    (folder / "data").mkdir()
    rows = [{"country": "Peru", "capital": "Lima"}, {"country": "Ecuador", "capital": "Quito"}]
    (folder / "data" / "capitals.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "capitals.toml").write_text(TASK)
    text = recipe_path.read_text() + '\n[evaluate]\ntasks = ["capitals.toml"]\ntask_rows = 1\n'
    recipe_path.write_text('data = "data"\n' + text)
    return recipe_path


def test_tasks_and_data_are_found_beside_the_recipe(judged):
    settings = load_recipe(judged).evaluate
    assert settings.tasks == (str(judged.parent / "capitals.toml"),)
    assert settings.data == str(judged.parent / "data")
    assert load_recipe(judged, overrides=["evaluate.tasks=[]", "data=elsewhere"]).evaluate.tasks == ()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ('evaluate.tasks=["nothing"]', "no task `nothing`"),
        ("data=elsewhere", "no data folder at"),
        ('evaluate.tasks=["nowhere.toml"]', "no task"),
    ],
)
def test_what_is_missing_is_said_before_any_work(override, message, judged):
    with pytest.raises(RecipeError, match=message):
        load_recipe(judged, overrides=[override])


def test_a_change_of_the_task_or_of_a_row_that_is_asked_makes_the_stage_anew(judged, stand_in, tmp_path):
    def ran():
        run_recipe(load_recipe(judged), runs_dir=tmp_path / "runs", stages=stand_in.stages)
        return [name for name in stand_in.ran() if name in ("prepare", "evaluate")]

    data = judged.parent / "data" / "capitals.jsonl"
    assert ran() == ["prepare", "evaluate"]
    assert ran() == []
    lines = data.read_text().splitlines(keepends=True)
    data.write_text("".join(reversed(lines)))
    assert ran() == []  # the same row is drawn
    data.write_text(data.read_text().replace("Lima", "Lima!").replace("Quito", "Quito!"))
    assert ran() == ["evaluate"]
    (judged.parent / "capitals.toml").write_text(TASK.replace("of {", "city of {"))
    assert ran() == ["evaluate"]
    (judged.parent / "capitals.toml").write_text(
        TASK.replace("of {", "city of {").replace('"Capitals"', '"C"')
    )
    assert ran() == []


def test_summary_table_and_report_have_the_scores(judged, stand_in, tmp_path, ammd):
    runs = tmp_path / "runs"
    summary = run_recipe(load_recipe(judged), runs_dir=runs, stages=stand_in.stages)
    assert summary["tasks"]["capitals"]["rows"] == 2
    for row in (*summary["models"], *summary["artifacts"]):
        assert row["tasks"]["capitals"]["metrics"]["rouge_l"]["value"] == 0.25
    page = (runs / summary["run"] / "report.html").read_text()
    assert "capitals, version 1: 2 rows of test, mean of 2 seeds" in page
    assert len(re.findall(r"25\.0 \(12\.5 to 50\.0\)", page)) == len(summary["models"]) + len(
        summary["artifacts"]
    )
    assert "F-measures of rouge-score" in page


def test_two_runs_are_compared_row_by_row(judged, stand_in, tmp_path, ammd):
    runs = tmp_path / "runs"
    first, second = (
        run_recipe(
            load_recipe(judged, overrides=[f"evaluate.answer_tokens={tokens}"]),
            runs_dir=runs,
            stages=stand_in.stages,
        )["run"]
        for tokens in (64, 96)
    )
    status, out, err = ammd("compare", first, second, "--json", "--quality-only", "--runs-dir", runs)
    assert status == 0, err
    found = {row["metric"]: row for row in json.loads(out)["changes"] if row["model"] == "student"}
    change = found["capitals.rouge_l"]
    assert (change["first"], change["second"], change["change"]) == (0.25, 0.375, 0.125)
    assert (change["low"], change["high"], change["prompts"], change["verdict"]) == (0.125, 0.125, 2, None)
    assert "capitals.rouge_l" in ammd("compare", first, second, "--quality-only", "--runs-dir", runs)[1]


def test_a_run_without_tasks_has_no_such_section(recipe_path, stand_in, tmp_path):
    summary = run_recipe(load_recipe(recipe_path), runs_dir=tmp_path / "runs", stages=stand_in.stages)
    assert summary["tasks"] == {}
    assert 'id="tasks"' not in (tmp_path / "runs" / summary["run"] / "report.html").read_text()
