"""Recipes as generated text and changes: a recipe that can be written again, or a list of its faults."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ammd.errors import AmmdError, RecipeError
from ammd.pipeline.recipe import Recipe, load_recipe
from ammd.pipeline.sweep import load_sweep
from ammd.pipeline.toml_text import write_toml

GENERATED = settings(max_examples=300, deadline=None, derandomize=True, database=None)
KEYS = (
    "name",
    "seed",
    "prepare.teacher",
    "prepare.prompts",
    "prepare.heldout",
    "prepare.student",
    "prepare.student.kind",
    "prepare.student.layers",
    "prepare.vocabulary.texts",
    "distill.warm.lr",
    "distill.objective.kind",
    "distill.objective.critic.kind",
    "export.schemes",
    "export.imatrix.texts",
    "bench.threads",
    "budget.files",
    "no.such.key",
    "",
)
VALUES = (
    "0",
    "1",
    "-1",
    "1.5",
    "inf",
    "nan",
    "true",
    "[]",
    "{}",
    "[[1]]",
    '["gguf-f16"]',
    '["gguf-f16", "onnx-int4"]',
    '"a"',
    '""',
    '"depth"',
    '"ammd"',
    '"."',
    '"~nobody-of-that-name/x"',
    '"hub:a/b"',
    '"pypi:a==1"',
    '"builtin:quickstart"',
    '"\\u0000"',
    '"' + "x" * 300 + '"',
    "1979-05-27",
    "[1, 2]",
    "{ kind = 1 }",
    '{ kind = "depth", layers = 2 }',
    "9" * 5000,
    "[" * 3000,
    "\\ud800",
    "bare",
    "",
)

paths = st.sampled_from(KEYS)
values = st.sampled_from(VALUES) | st.text(max_size=6)
lines = st.tuples(paths, values).map(lambda pair: f"{pair[0]} = {pair[1]}")
tables = st.sampled_from(["[prepare]", "[distill]", "[export.onnx]", "[budget]", "[x]", "[[prepare]]"])
recipes = st.lists(lines | tables | st.text(max_size=8), max_size=8).map("\n".join)
changes = st.lists(st.tuples(paths, values).map("=".join) | st.text(max_size=8), max_size=4)


def checked(read: Any) -> Any:
    """Return what `read` gives; None where it refuses it with words."""
    try:
        return read()
    except AmmdError as exc:
        assert str(exc)
        return None


@GENERATED
@given(recipes, changes)
def test_a_recipe_is_one_or_refused(text: str, overrides: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "x.toml")
        path.write_bytes(text.encode("utf-8", errors="surrogatepass"))
        recipe = checked(lambda: load_recipe(path, overrides=overrides))
        assert [found.name for found in Path(folder).iterdir()] == ["x.toml"]
    assert recipe is None or isinstance(recipe, Recipe)


@GENERATED
@given(changes)
def test_changes_of_the_packaged_recipe_can_be_written_and_read_again(overrides: list[str]) -> None:
    recipe = checked(lambda: load_recipe(overrides=overrides))
    if recipe is None:
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "recipe.toml")
        path.write_text(write_toml(recipe.model_dump(mode="json")), encoding="utf-8")
        assert load_recipe(path).model_dump() == recipe.model_dump()


@GENERATED
@given(changes)
def test_a_sweep_is_one_or_refused(overrides: list[str]) -> None:
    sweep = checked(lambda: load_sweep(overrides=overrides))
    assert sweep is None or len(sweep.points) >= 1


@pytest.mark.parametrize("text", ["a = " + "[" * 3000, "a = " + "9" * 5000, "a = 9999-99-99"])
def test_toml_that_python_itself_gives_up_on_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match="is not TOML"):
        load_recipe(path)
