"""The run's document: what it tells of the student."""

from __future__ import annotations

from pathlib import Path

from ammd.artifact import Manifest
from ammd.pipeline.cache import Done
from ammd.pipeline.recipe import load_recipe
from ammd.pipeline.summary import build_summary


def test_layers_that_go_in_stages_are_told_as_they_are_in_the_end(recipe_path: Path, tmp_path: Path) -> None:
    results = {
        "prepare": {"student": {"kept_layers": [0, 1, 3], "block_influence": [0.1, 0.2, 0.3, 0.4]}},
        "distill": {"kept_layers": [0, 3], "parameters": 10},
    }
    done = {
        name: Done(
            folder=tmp_path, manifest=Manifest(stage=name, key="", files=(), results=found), cached=False
        )
        for name, found in results.items()
    }
    training = build_summary(load_recipe(recipe_path), tmp_path, done)["training"]
    assert training["kept_layers"] == [0, 3]
    assert training["block_influence"] == [0.1, 0.2, 0.3, 0.4]
