"""Recipes that list values: which lists are lists to try, all combinations of them, and every fault at once."""

import pytest

from ammd.errors import RecipeError
from ammd.pipeline.plan import plan_sweep
from ammd.pipeline.run import run_recipe
from ammd.pipeline.sweep import load_sweep


def faults_of(path, *overrides):
    with pytest.raises(RecipeError) as caught:
        load_sweep(path, overrides=overrides)
    return str(caught.value)


def test_recipe_without_lists_to_try_is_one_run(recipe_path):
    sweep = load_sweep(recipe_path)  # export.schemes is a list by itself
    assert sweep.keys == ()
    assert len(sweep.points) == 1


def test_all_combinations_the_last_list_fastest(recipe_path):
    sweep = load_sweep(recipe_path, overrides=["seed=[0,1,2]", "distill.batch_size=[4,8]"])
    assert sweep.keys == ("seed", "distill.batch_size")
    assert [(point.recipe.seed, point.recipe.distill.batch_size) for point in sweep.points] == [
        (seed, size) for seed in (0, 1, 2) for size in (4, 8)
    ]
    assert {point.recipe.distill.seed for point in sweep.points} == {0, 1, 2}  # handed down in each
    assert sweep.points[0].choices == {"seed": 0, "distill.batch_size": 4}


def test_lists_of_lists_are_tried_where_a_key_takes_a_list(recipe_path):
    sweep = load_sweep(
        recipe_path,
        overrides=['export.schemes=[["gguf-f16"], ["gguf-q8_0", "gguf-f16"]]', "bench.threads=[1, 0]"],
    )
    assert sweep.keys == ("export.schemes",)
    assert [len(point.recipe.export.schemes) for point in sweep.points] == [1, 2]
    threads = load_sweep(recipe_path, overrides=['bench.threads=[[1], "sweep"]'])
    assert [point.recipe.bench.threads for point in threads.points] == [(1,), "sweep"]


def test_objectives_by_kind_alone_or_as_tables_with_lists_of_their_own(recipe_path):
    text = recipe_path.read_text(encoding="utf-8")
    objectives = '["gkd", "ammd", { kind = "sft", steps = [1, 2] }]'
    recipe_path.write_text(f"{text}\n[distill]\nobjective = {objectives}\n", encoding="utf-8")
    sweep = load_sweep(recipe_path)
    assert sweep.keys == ("distill.objective", "distill.objective.steps")
    found = [
        (point.recipe.distill.objective.kind, point.recipe.distill.objective.steps) for point in sweep.points
    ]
    assert found == [("gjsd", 100), ("ammd", 100), ("sft", 1), ("sft", 2)]
    assert "distill.objective.steps" not in sweep.points[0].choices


def test_arrays_of_tables_are_lists_too(recipe_path):
    text = recipe_path.read_text(encoding="utf-8").replace(
        '[prepare.student]\nkind = "depth"\nlayers = 1\n', ""
    )
    students = (
        '[[prepare.student]]\nkind = "depth"\nlayers = 1\n[[prepare.student]]\nkind = "depth"\nlayers = 2\n'
    )
    recipe_path.write_text(text + students, encoding="utf-8")
    assert [point.recipe.prepare.student.layers for point in load_sweep(recipe_path).points] == [1, 2]


def test_paths_in_lists_are_resolved_from_where_they_are_written(recipe_path):
    text = recipe_path.read_text(encoding="utf-8")
    listed = text.replace('prompts = "prompts.jsonl"', 'prompts = ["prompts.jsonl", "heldout.jsonl"]')
    recipe_path.write_text(listed, encoding="utf-8")
    folder = recipe_path.parent
    found = [point.recipe.prepare.prompts for point in load_sweep(recipe_path).points]
    assert found == [str(folder / "prompts.jsonl"), str(folder / "heldout.jsonl")]
    students = 'prepare.student=[{kind="model", source="gone"}, {kind="depth", layers=2}]'
    assert "gone`" in faults_of(recipe_path, students)


def test_faults_of_all_combinations_are_told_once(recipe_path):
    message = faults_of(recipe_path, "distill.batch_size=[4, 0, 'many']", "seed=[0, 1]", "bench.speed=[1, 2]")
    assert message.splitlines()[0].startswith("3 faults in")
    assert "`distill.batch_size` = `0`: should be greater than or equal to 1 (--set)" in message
    assert '`distill.batch_size` = `"many"`: should be a valid integer' in message
    assert "`bench.speed` = `[1, 2]`: unknown key" in message


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=[]", "`seed` = `[]`: should be a valid integer"),
        ("seed=[[0, 1], 2]", "`seed` = `[0, 1]`: should be a valid integer"),
        ("seed=[0, 1, 0]", "`seed` = `0`: makes the same run as a value before it"),
        ('distill.objective=["gjsd", "gkd"]', '`distill.objective` = `"gkd"`: makes the same run as'),
        ('distill.objective=["ammd", "fly"]', '`distill.objective.kind` = `"fly"`: should be one of `ammd`'),
        ('name=["a", "b"]', "`name` cannot be swept: runs share stages under one name"),
    ],
)
def test_lists_that_are_no_sweep_are_refused(recipe_path, override, message):
    assert message in faults_of(recipe_path, override)


def test_a_sweep_without_end_is_refused_before_it_is_drawn(recipe_path):
    keys = ("seed", "distill.batch_size", "distill.warm.steps", "prepare.batch_size", "evaluate.prompts")
    many = ", ".join(map(str, range(1, 101)))
    message = faults_of(recipe_path, *(f"{key}=[{many}]" for key in keys))
    assert "makes a sweep of more than 10000 runs" in message


def test_plan_tells_what_is_made_shared_and_there(recipe_path, tmp_path, stand_in):
    runs_dir = tmp_path / "runs"
    sweep = load_sweep(recipe_path, overrides=["distill.seed=[0, 1]", "bench.repetitions=[3, 5]"])

    def states(until="report"):
        plan = plan_sweep(sweep, runs_dir=runs_dir, until=until, stages=stand_in.stages)
        return [" ".join(row["stages"].values()) for row in plan["runs"]], plan

    rows, plan = states()
    assert rows == [
        "make make make make make make",
        "share share share share share make",
        "share make make make make make",
        "share share share share share make",
    ]
    assert (plan["schema"], plan["make"], plan["share"], plan["there"]) == ("ammd.plan/1", 13, 11, 0)
    assert [row["memory_bytes"] > 1 << 30 for row in plan["runs"]] == [True] * 4
    assert states(until="distill")[0][0] == "make make"

    run_recipe(sweep.points[1].recipe, runs_dir=runs_dir, stages=stand_in.stages)
    assert states()[0] == [
        "there there there there there make",
        "there there there there there there",
        "there make make make make make",
        "there share share share share make",
    ]


def test_plan_agrees_with_which_stages_the_path_hands_on(recipe_path, tmp_path, stand_in, monkeypatch):
    """`Stage.reads` is said once more than in `run_recipe`; both must say the same."""
    from ammd.pipeline.open_run import OpenRun

    found = {}
    real = OpenRun.stage

    def stage(run, name, settings, **inputs):
        paths = str(inputs)
        found[name] = {other for other in run.done if f"{run.folder}/{other}" in paths}
        return real(run, name, settings, **inputs)

    monkeypatch.setattr(OpenRun, "stage", stage)
    recipe = load_sweep(recipe_path, overrides=["export.imatrix={}"]).points[0].recipe
    run_recipe(recipe, runs_dir=tmp_path / "runs", stages=stand_in.stages)
    for name, read in found.items():
        through = {below for other in read for below in stand_in.stages[other].reads}
        assert set(stand_in.stages[name].reads) == read | through, name
