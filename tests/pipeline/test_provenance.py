"""What the files of a run say of their origin, taken from the manifests of the stages that made the student."""

import json

import pytest

from ammd.artifact import Manifest
from ammd.model_origin import License, ModelOrigin
from ammd.pipeline.provenance import provenance, provenance_of
from ammd.pipeline.recipe import load_recipe
from ammd.pipeline.run import run_recipe

TEACHER = {
    "name": "T",
    "source": "hub:o/T",
    "revision": "commit:1",
    "hub_id": "o/T",
    "license": {"id": "mit"},
}
OTHER = {"name": "S", "source": "s", "revision": "sha256:2", "hub_id": None, "license": None}


def _manifests(student, **settings):
    results = {"teacher": TEACHER, "student": student}
    return (
        Manifest(stage="prepare", key="", files=(), settings=settings, results=results),
        Manifest(stage="distill", key="", files=(), settings={"seed": 1}),
    )


def test_a_cut_student_is_based_on_its_teacher():
    found = provenance("mine", *_manifests({"kept_layers": [0, 1]}))
    assert found.name == "mine"
    assert found.teacher == ModelOrigin(
        name="T", source="hub:o/T", revision="commit:1", hub_id="o/T", license=License(id="mit")
    )
    assert found.base_model == found.teacher


def test_another_model_as_student_is_its_own_base():
    found = provenance("mine", *_manifests({"source": "/home/me/s", "origin": OTHER}))
    assert found.base_model == ModelOrigin(name="S", source="s", revision="sha256:2")
    assert found.teacher.name == "T"


def test_a_run_of_an_older_version_knows_less():
    stages = [Manifest(stage=name, key="", files=()) for name in ("prepare", "distill")]
    found = provenance("mine", *stages)
    assert (found.base_model, found.teacher) == (None, None)


def test_recipe_hash_goes_by_what_makes_the_student():
    hashes = {
        provenance(name, *_manifests({}, layers=layers)).recipe_sha256
        for name, layers in (("a", 1), ("b", 1), ("a", 2))
    }
    assert len(hashes) == 2


@pytest.fixture
def made(tmp_path, recipe_path, stand_in):
    """The folder of a run of the stand-ins."""
    recipe = load_recipe(recipe_path)
    summary = run_recipe(recipe, runs_dir=tmp_path / "runs", stages=stand_in.stages)
    return tmp_path / "runs" / summary["run"]


def test_only_the_runs_student_has_the_runs_origin(made, tmp_path):
    found = provenance_of(made / "distill" / "student")
    assert found.name == "tiny"
    assert len(found.recipe_sha256) == 64
    assert provenance_of(made / "distill" / "warm") is None
    assert provenance_of(made / "prepare" / "teacher") is None
    assert provenance_of(tmp_path / "recipe" / "teacher") is None
    exported = json.loads((made / "export" / "manifest.json").read_text(encoding="utf-8"))
    assert exported["inputs"].keys() == {"checkpoint", "provenance"}


def test_another_place_and_later_sections_change_no_hash(made, tmp_path, recipe_path, stand_in):
    moved = recipe_path.parent.rename(tmp_path / "elsewhere")
    recipe = load_recipe(
        moved / recipe_path.name, overrides=["bench.repetitions=2", "export.schemes=['gguf-f16']"]
    )
    summary = run_recipe(recipe, runs_dir=tmp_path / "other runs", stages=stand_in.stages)
    again = provenance_of(tmp_path / "other runs" / summary["run"] / "distill" / "student")
    assert again == provenance_of(made / "distill" / "student")
