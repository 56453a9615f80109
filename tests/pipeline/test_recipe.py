"""Recipes: faults all at once, overrides, paths, seeds, and the round trip through TOML."""

import tomllib
from pathlib import Path

import pytest

from ammd.errors import RecipeError
from ammd.export import optimum_exporter
from ammd.export.settings import ExportSettings
from ammd.pipeline.open_run import localize
from ammd.pipeline.recipe import Recipe, load_recipe, load_section
from ammd.pipeline.recipe_document import BUILTIN, DATA_FILES, data_file
from ammd.pipeline.toml_text import find_line, parse_value, write_toml


def faults_of(path, *overrides):
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides=overrides)
    return str(caught.value)


def test_packaged_quickstart_is_valid_and_its_prompt_files_ship():
    recipe = load_recipe()
    assert recipe.name == "quickstart"
    assert recipe.prepare.prompts == recipe.prepare.heldout == BUILTIN
    for key in DATA_FILES:
        assert data_file(BUILTIN, key).read_text(encoding="utf-8").startswith('{"prompt"')


def test_files_whose_exporter_is_not_installed_are_refused_with_the_recipe(recipe_path, monkeypatch):
    monkeypatch.setattr(optimum_exporter, "missing_exporter", lambda: ("optimum is not there", "install it"))
    change = 'export.schemes=["onnx-standard-int8"]'
    wanted = (
        '`export.schemes` = `"onnx-standard-int8"`: cannot be made here: optimum is not there; install it'
    )
    assert wanted in faults_of(recipe_path, change)
    assert load_recipe(recipe_path, overrides=[change], check_files=False).export.schemes == (
        "onnx-standard-int8",
    )


def test_every_fault_is_reported_at_once_with_path_value_line_and_nearest_key(recipe_path):
    text = recipe_path.read_text(encoding="utf-8").replace("layers = 1", "layer = 1")
    text = text.replace('teacher = "teacher"', 'teacher = "no-such-folder"').replace("seed = 7", "seed = -7")
    recipe_path.write_text(text + "\n[distill]\nbatch_size = 'many'\n", encoding="utf-8")
    message = faults_of(recipe_path, "prepare.temprature=0.5", "bench.repetitions=0", "nonsense")
    lines = message.splitlines()
    assert lines[0] == f"8 faults in `{recipe_path}`"
    assert "`seed` = `-7`: should be greater than or equal to 0 (line 2)" in message
    assert "`prepare.student.layers` is missing (line 9)" in message
    assert (
        "`prepare.student.layer` = `1`: unknown key, the nearest valid one is `prepare.student.layers` (line 11)"
        in message
    )
    assert '`distill.batch_size` = `"many"`: should be a valid integer' in message
    assert (
        "`prepare.temprature` = `0.5`: unknown key, the nearest valid one is `prepare.temperature`" in message
    )
    assert "`bench.repetitions` = `0`: should be greater than or equal to 1 (--set)" in message
    assert '`--set` = `"nonsense"`: should have the form `a.b=value`' in message
    assert f'`prepare.teacher` = `"{recipe_path.parent / "no-such-folder"}"`: model source' in message


def test_key_of_another_section_is_answered_with_where_it_belongs(recipe_path):
    message = faults_of(recipe_path, "distill.lr=3e-5")
    assert "nearest valid one is `distill.warm.lr` or `distill.objective.lr`" in message


def test_sections_that_contradict_each_other_are_refused(recipe_path):
    changes = ["distill.quantize_as=gguf-q8_0", "prepare.student.stages=3", "distill.warm.steps=2"]
    message = faults_of(recipe_path, *changes, 'export.schemes=["gguf-f16", "onnx-int4"]')
    assert (
        '`distill.quantize_as` = `"gguf-q8_0"`: should be one of `export.schemes`, `gguf-f16`, `onnx-int4` (--set)'
        in message
    )
    assert "`distill.warm.steps` = `2`: should be at least 3, a step for each of" in message
    assert load_recipe(recipe_path, overrides=changes[:2]).distill.quantize_as == "gguf-q8_0"


@pytest.mark.parametrize(
    ("scheme", "change", "message"),
    [
        ("onnx-int4", "export.onnx.symmetric=true", "rounds as the defaults of `export.onnx` do"),
        ("gguf-q4_0", "export.imatrix={}", "rounds as without an importance matrix"),
    ],
)
def test_training_for_a_file_that_is_rounded_otherwise_is_refused(recipe_path, scheme, change, message):
    changes = (f'distill.quantize_as="{scheme}"', f'export.schemes=["{scheme}"]')
    assert f'`distill.quantize_as` = `"{scheme}"`: {message}' in faults_of(recipe_path, *changes, change)
    load_recipe(recipe_path, overrides=changes)


def test_unknown_student_kind_names_the_known_ones(recipe_path):
    message = faults_of(recipe_path, "prepare.student.kind=breadth")
    assert '`prepare.student.kind` = `"breadth"`: should be one of `depth`, `width`, `model`' in message


def test_a_narrower_student_is_checked_with_the_recipe(recipe_path):
    student = "prepare.student={kind='width', intermediate_size=1000, key_value_heads=2}"
    message = faults_of(recipe_path, student)
    assert (
        "`prepare.student.intermediate_size` = `1000`: should be a multiple of 32, the nearest are" in message
    )
    message = faults_of(recipe_path, "prepare.student={kind='width', layers=1}")
    assert 'kind "width" needs intermediate_size, key_value_heads or both' in message


def test_missing_data_file_is_a_fault(recipe_path):
    (recipe_path.parent / "heldout.jsonl").unlink()
    assert "`prepare.heldout`" in (message := faults_of(recipe_path))
    assert "there is no such file (line 7)" in message


def test_objective_that_needs_one_tokenizer_is_a_fault_where_the_student_keeps_its_own(recipe_path):
    own = 'prepare.student={kind="model", source="hub:a/b", tokenizer="own"}'
    message = faults_of(recipe_path, own, "distill.objective=minillm")
    assert '`distill.objective` = `"minillm"`: draws each token from both models at once' in message
    assert (
        "take one of ammd, le_cam, sft, forward_kl, reverse_kl, gjsd, tv, skew_kl, skew_rkl, distillm"
        in message
    )
    critic = 'distill.objective={kind="ammd", critic={kind="lowrank"}}'
    assert 'set `distill.objective.critic.start = "log_ratio"`' in faults_of(recipe_path, own, critic)
    assert "excludes student.tokenizer" in faults_of(recipe_path, own, "prepare.vocabulary={}")
    load_recipe(recipe_path, overrides=[own, 'distill.objective={kind="ammd"}'])


def test_missing_text_of_the_vocabulary_is_a_fault(recipe_path):
    message = faults_of(recipe_path, "prepare.vocabulary.texts=['none.txt']")
    assert (
        f'`prepare.vocabulary.texts` = `"{Path.cwd() / "none.txt"}"`: there is no such file (--set)'
        in message
    )


@pytest.mark.parametrize("source", ["hub:name", "pypi:package", ""])
def test_malformed_model_source_is_a_fault(recipe_path, source):
    assert "`prepare.teacher`" in faults_of(recipe_path, f"prepare.teacher='{source}'")


def test_recipe_that_is_no_toml_names_the_line(tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text('name = "x"\nseed = = 3\n', encoding="utf-8")
    assert "is not TOML" in (message := faults_of(path))
    assert "line 2" in message


def test_recipe_that_is_not_there(tmp_path):
    assert "cannot read recipe" in faults_of(tmp_path / "none.toml")


def test_recipe_that_is_no_text(tmp_path):
    path = tmp_path / "bad.toml"
    path.write_bytes(b"\xff\xfe")
    assert "is not UTF-8 text" in faults_of(path)


def test_override_through_a_plain_value_is_a_fault(recipe_path):
    assert "`name` is a value, not a section" in faults_of(recipe_path, "name.x=1")


def test_overrides_take_toml_values_and_bare_strings(recipe_path):
    recipe = load_recipe(
        recipe_path,
        overrides=[
            "name=other",
            "distill.warm.lr=1e-5",
            "bench.threads=[1, 2]",
            "prepare.student={kind='depth', layers=3}",
        ],
    )
    assert recipe.name == "other"
    assert recipe.distill.warm.lr == 1e-5
    assert recipe.bench.threads == (1, 2)
    assert recipe.prepare.student.layers == 3


def test_paths_of_the_recipe_start_at_its_folder_and_those_of_set_at_the_current_one(
    recipe_path, tmp_path, monkeypatch
):
    here = tmp_path / "here"
    here.mkdir()
    (here / "mine.jsonl").write_text('{"prompt": "x"}\n', encoding="utf-8")
    monkeypatch.chdir(here)
    recipe = load_recipe(recipe_path, overrides=["prepare.prompts=mine.jsonl"])
    assert Path(recipe.prepare.prompts) == here / "mine.jsonl"
    assert Path(recipe.prepare.heldout) == recipe_path.parent / "heldout.jsonl"


def test_texts_of_the_vocabulary_are_found_beside_the_recipe_and_keyed_by_content(recipe_path):
    text = recipe_path.parent / "more.txt"
    text.write_text("more", encoding="utf-8")
    with recipe_path.open("a", encoding="utf-8") as stream:
        stream.write('\n[prepare.vocabulary]\ntexts = ["more.txt"]\n')
    settings = load_recipe(recipe_path).prepare
    assert settings.vocabulary.texts == (str(text),)
    given, keyed = localize("prepare", settings)
    assert given.vocabulary.texts == (str(text),)
    text.write_text("other", encoding="utf-8")
    _, changed = localize("prepare", settings)
    assert keyed["vocabulary"] != changed["vocabulary"]
    assert str(recipe_path.parent) not in str(changed)


def test_empty_vocabulary_table_survives_the_round_trip(recipe_path, tmp_path):
    assert load_recipe(recipe_path).prepare.vocabulary is None
    recipe = load_recipe(recipe_path, overrides=["prepare.vocabulary={}"])
    assert recipe.prepare.vocabulary.max_tokens is None
    again = tmp_path / "again.toml"
    again.write_text(write_toml(recipe.model_dump(mode="json")), encoding="utf-8")
    assert load_recipe(again) == recipe


def test_seed_reaches_the_sections_that_draw_and_yields_to_their_own(recipe_path):
    recipe = load_recipe(recipe_path, overrides=["distill.seed=1"])
    assert (recipe.prepare.seed, recipe.distill.seed, recipe.evaluate.seed) == (7, 1, 7)


def test_resolved_recipe_survives_the_round_trip_through_toml(recipe_path, tmp_path):
    recipe = load_recipe(recipe_path, overrides=["verify.kl_limit_nats={'a b' = 0.1}"])
    again = tmp_path / "again.toml"
    again.write_text(write_toml(recipe.model_dump(mode="json")), encoding="utf-8")
    assert load_recipe(again) == recipe


def test_section_settings_from_overrides_alone():
    assert len(load_section(ExportSettings, ["schemes=['gguf-f16']"]).schemes) == 1
    with pytest.raises(RecipeError, match="nearest valid one is `schemes`"):
        load_section(ExportSettings, ["scheme=x"])


def test_toml_writer_keeps_every_kind_of_value():
    document = {
        "b": True,
        "i": 3,
        "f": 1e-07,
        "s": 'quo"te\\ \n ü \x7f',
        "l": [1, 2],
        "t": {"u": {"v": "w"}, "e": {}},
    }
    assert tomllib.loads(write_toml({**document, "none": None})) == document


@pytest.mark.parametrize(
    ("text", "value"),
    [("1", 1), ("1e-3", 1e-3), ("true", True), ("[1]", [1]), ("word", "word"), ("'q'", "q"), ("", "")],
)
def test_values_of_set(text, value):
    assert parse_value(text) == value


def test_line_of_a_key_of_a_section_and_of_nothing():
    text = "name = 1\n[a.b]\n# c = 0\nc = 2\nd.e = 3\n"
    assert find_line(text, ("a", "b", "c")) == 4
    assert find_line(text, ("a", "b", "x")) == 2
    assert find_line(text, ("a", "b", "d", "e")) == 5
    assert find_line(text, ("z",)) is None


def test_every_recipe_key_has_a_docstring():
    def undocumented(model, prefix=""):
        for name, field in model.model_fields.items():
            if not field.description and name != "kind":
                yield prefix + name

    sections = [Recipe, *(field.annotation for field in Recipe.model_fields.values())]
    missing = [
        key for section in sections if hasattr(section, "model_fields") for key in undocumented(section)
    ]
    assert missing == []


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("kind=mlpx", '`distill.objective.critic.kind` = `"mlpx"`: should be one of `closed`, `linear`,'),
        (
            "ascents=3",
            "`distill.objective.critic.kind` is missing, one of `closed`, `linear`, `lowrank`, `mlp`",
        ),
    ],
)
def test_a_section_in_a_section_of_some_kind_says_which_kinds_there_are(override: str, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(overrides=[f"distill.objective.critic.{override}"])
    assert said in str(caught.value)


def test_a_key_of_another_kind_is_not_advised_against_itself() -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(overrides=["distill.objective.kind=gjsd"])
    message = str(caught.value)
    assert (
        "`distill.objective.discount` = `0.5`: unknown key for this kind, valid here: steps, lr," in message
    )
    assert "nearest" not in message


def test_a_key_that_several_kinds_share_is_advised_once() -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(overrides=["distill.rollout_reuse_step=4"])
    assert str(caught.value).count("distill.objective.rollout_reuse_steps") == 1


def test_a_tracker_that_is_not_installed_is_refused_before_any_work(recipe_path, monkeypatch):
    monkeypatch.setattr(
        "ammd.distill.track_settings.PACKAGES", {"tensorboard": ("no_such_module", "tensorboard")}
    )
    with pytest.raises(
        RecipeError,
        match=r"`track.trackers` = `\"tensorboard\"`: is not installed: `pip install tensorboard`",
    ):
        load_recipe(recipe_path, overrides=["track.trackers=['tensorboard']"])


def test_trackers_change_neither_the_run_nor_its_stages(recipe_path, tmp_path, stand_in):
    from ammd.pipeline.run import run_recipe

    plain = load_recipe(recipe_path)
    first = run_recipe(plain, runs_dir=tmp_path / "runs", stages=stand_in.stages)
    stand_in.ran()
    tracked = load_recipe(recipe_path, overrides=["track.trackers=['tensorboard']"])
    second = run_recipe(tracked, runs_dir=tmp_path / "runs", stages=stand_in.stages)
    assert (second["run"], stand_in.ran()) == (first["run"], [])
