"""Recipes that train for a task, and the packaged ones that do."""

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from ammd.errors import RecipeError
from ammd.pipeline.bundle_manifest import training_data
from ammd.pipeline.open_run import localize, outside_files
from ammd.pipeline.recipe import load_recipe
from ammd.pipeline.recipe_document import packaged_recipes
from ammd.pipeline.toml_text import write_toml
from ammd.task import load_task, packaged_tasks

TASK = """
name = "mine"
version = 1
description = "Mine."
kind = "summarization"
data = { train = "mine/train.jsonl", dev = "mine/dev.jsonl" }
prompt = "{source}"
references = "target"
response_tokens = 17
"""
# Sets with rows to train on have a recipe.
READY = (
    *("dolly", "gsm8k", "qmsum", "scitldr", "strategyqa", "tatoeba"),
    *("dolly-t5", "scitldr-t5", "strategyqa-t5", "tatoeba-t5"),
)


@pytest.fixture
def task_recipe(recipe_path):
    """A recipe with a task of its own and its data beside it, in the place of files of prompts."""
    folder = recipe_path.parent
    text = recipe_path.read_text(encoding="utf-8")
    text = text.replace('prompts = "prompts.jsonl"\nheldout = "heldout.jsonl"\n', 'task = "mine.toml"\n')
    recipe_path.write_text('data = "kit"\n' + text, encoding="utf-8")
    (folder / "mine.toml").write_text(TASK, encoding="utf-8")
    (folder / "kit" / "mine").mkdir(parents=True)
    for split in ("train", "dev"):
        write_row(folder, split, source=split)
    return recipe_path


def write_row(folder, split, **row):
    line = json.dumps({"source": "a", "target": "b", **row})
    (folder / "kit" / "mine" / f"{split}.jsonl").write_text(line + "\n", encoding="utf-8")


def faults_of(path, *overrides):
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides=overrides)
    return str(caught.value)


def test_a_task_and_its_data_are_found_beside_the_recipe(task_recipe, tmp_path):
    recipe = load_recipe(task_recipe)
    folder = task_recipe.parent
    assert (recipe.prepare.task, recipe.prepare.data) == (str(folder / "mine.toml"), str(folder / "kit"))
    assert recipe.prepare.prompts is recipe.prepare.heldout is None
    again = tmp_path / "again.toml"
    again.write_text(write_toml(recipe.model_dump(mode="json")), encoding="utf-8")
    assert load_recipe(again) == recipe


def test_the_length_of_a_response_is_the_tasks_unless_the_recipe_says_another(task_recipe):
    assert load_recipe(task_recipe).prepare.response_tokens == 17
    assert load_recipe(task_recipe, overrides=["prepare.response_tokens=5"]).prepare.response_tokens == 5


def test_a_section_may_have_data_of_its_own(task_recipe):
    recipe = load_recipe(
        task_recipe, overrides=["data=/nowhere", f"prepare.data={task_recipe.parent / 'kit'}"]
    )
    assert (recipe.data, recipe.prepare.data) == ("/nowhere", str(task_recipe.parent / "kit"))


@pytest.mark.parametrize("given", [("prompts", "heldout"), ("prompts",), ("heldout",)])
def test_a_task_beside_files_of_prompts_is_one_fault(task_recipe, given):
    files = [f"prepare.{role}={task_recipe.parent / f'{role}.jsonl'}" for role in given]
    message = faults_of(task_recipe, *files)
    assert f"`prepare.{given[0]}` = " in message
    assert "goes without `task`" in message
    assert len(message.splitlines()) == 1


def test_neither_a_task_nor_files_is_told_as_missing(recipe_path):
    text = recipe_path.read_text(encoding="utf-8").replace('heldout = "heldout.jsonl"\n', "")
    recipe_path.write_text(text, encoding="utf-8")
    assert "`prepare.heldout` is missing" in faults_of(recipe_path)


def test_what_hinders_a_task_is_one_fault_each(task_recipe):
    assert '`prepare.task` = `"nothing"`: no task `nothing`; packaged tasks: bbh' in faults_of(
        task_recipe, "prepare.task=nothing"
    )
    assert '`prepare.task` = `"vicuna"`: task `vicuna` is to judge by' in faults_of(
        task_recipe, "prepare.task=vicuna"
    )
    assert '`data` = `"/nowhere"`: no data folder at `/nowhere`' in faults_of(task_recipe, "data=/nowhere")
    message = faults_of(task_recipe, "prepare.task=scitldr")
    assert "no data file at" in message
    assert "sum-scitldr/train.jsonl" in message
    text = task_recipe.read_text(encoding="utf-8").replace('data = "kit"\n', "")
    task_recipe.write_text(text, encoding="utf-8")
    message = faults_of(task_recipe)
    assert "`data` is missing: task `mine` reads `mine/train.jsonl` below a data folder" in message
    assert "`--data DIR`" in message


def test_a_data_set_of_a_hub_needs_its_reader_before_any_work(task_recipe, monkeypatch):
    hub = 'hub = { id = "a/b", revision = "' + "0" * 40 + '" }\n'
    text = "\n".join(line for line in TASK.splitlines() if not line.startswith("data ="))
    (task_recipe.parent / "mine.toml").write_text(f"{text}\n{hub}", encoding="utf-8")
    if importlib.util.find_spec("datasets"):
        assert load_recipe(task_recipe).prepare.response_tokens == 17
    monkeypatch.setitem(sys.modules, "datasets", None)
    message = faults_of(task_recipe)
    assert "`prepare.task` = " in message
    assert (
        "`a/b` is read by the package `datasets`, which is not installed; `pip install 'ammd[hub]'`"
        in message
    )


def test_a_finished_run_needs_its_data_no_more(task_recipe):
    recipe = load_recipe(task_recipe, overrides=["data=/nowhere"], check_files=False)
    assert recipe.prepare.data == "/nowhere"


def test_the_key_follows_what_is_read_of_a_task_and_nothing_else(task_recipe):
    folder, settings = task_recipe.parent, load_recipe(task_recipe).prepare

    def key():
        given, keyed = localize("prepare", settings)
        assert given == settings
        assert str(folder) not in json.dumps({**keyed, "teacher": ""})
        return keyed

    first = key()
    assert first["prompts"] != first["heldout"]
    assert first["prompts"].startswith("sha256:")
    write_row(folder, "train", source="train", id=3)  # a field that the task does not read
    (folder / "mine.toml").write_text(TASK.replace("Mine.", "Ours."), encoding="utf-8")
    assert key() == first
    write_row(folder, "train", target="another")
    second = key()
    assert (second["prompts"] == first["prompts"], second["heldout"]) == (False, first["heldout"])
    (folder / "mine.toml").write_text(TASK.replace("{source}", "Say {source}"), encoding="utf-8")
    third = key()
    assert len({keyed["prompts"] for keyed in (first, second, third)}) == 3
    assert third["heldout"] != first["heldout"]


def test_a_tasks_files_are_watched(task_recipe):
    folder = task_recipe.parent
    found = outside_files("prepare", load_recipe(task_recipe).prepare)
    assert {folder / "mine.toml", folder / "kit/mine/train.jsonl", folder / "kit/mine/dev.jsonl"} < set(found)


def test_a_bundle_names_the_task_and_no_folder(task_recipe):
    prepared = SimpleNamespace(
        manifest=SimpleNamespace(settings={"prompts": "sha256:a", "heldout": "sha256:b"})
    )

    prepare = load_recipe(task_recipe).prepare.model_dump(mode="json")
    rows = training_data({"recipe": {"prepare": prepare}}, {"prepare": prepared})
    assert rows == [
        {"role": "prompts", "name": "task mine", "sha256": "a", "license": None},
        {"role": "heldout", "name": "task mine", "sha256": "b", "license": None},
    ]


def write_kit(folder):
    """A data folder with a row in each file that a packaged task reads, in the fields of its task."""
    for name in packaged_tasks():
        task = load_task(name)
        answer = {"choice": "yes", "exact": "#### 7"}.get(task.kind, "An answer.")
        fields = dict.fromkeys(task.prompt_fields, "A question?") | {task.references[-1]: answer}
        for path in map(folder.joinpath, task.data.values()):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(fields) + "\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", READY)
def test_a_packaged_recipe_runs_by_its_name(name, tmp_path, ammd):
    kit = write_kit(tmp_path / "kit")
    code, out, _ = ammd("run", name, "--data", str(kit), "--dry-run", "--json")
    document = json.loads(out)
    assert code == 0
    assert (document["name"], document["data"], document["prepare"]["data"]) == (name, str(kit), str(kit))
    assert document["prepare"]["task"] == name.removesuffix("-t5")
    assert document["prepare"]["task"] in document["evaluate"]["tasks"]


def test_every_task_of_answers_is_judged_by_in_a_packaged_recipe(tmp_path):
    kit = write_kit(tmp_path / "kit")
    named = {
        task for name in READY for task in load_recipe(Path(name), overrides={"data": kit}).evaluate.tasks
    }
    assert named == set(packaged_tasks()) - {"wikitext2"}


def test_there_is_a_recipe_for_each_task_that_can_be_trained_on_and_the_quickstart():
    assert packaged_recipes() == tuple(sorted(("quickstart", *READY)))
    assert load_recipe(Path("quickstart")) == load_recipe()


def test_an_unknown_recipe_is_answered_with_the_packaged_ones(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match="cannot read recipe `scitdlr`") as caught:
        load_recipe(Path("scitdlr"))
    assert "packaged recipes: dolly, dolly-t5, gsm8k, qmsum, quickstart, scitldr" in caught.value.hint


def test_a_file_goes_before_a_packaged_recipe_of_its_name(recipe_path, tmp_path, monkeypatch):
    monkeypatch.chdir(recipe_path.parent)
    Path("dolly").write_text(recipe_path.read_text(encoding="utf-8"), encoding="utf-8")
    assert load_recipe(Path("dolly")).name == "tiny"
