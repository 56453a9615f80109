"""Where a run's student comes from, for the files that are made of it: recipe, base model, teacher.

All of it is in the manifests of the stages that made the student. The hash of the recipe is over their settings with
data files by content, so it is the same on another machine, and settings that only judge a student do not change it.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from ammd.artifact import Manifest, hash_text, is_published, read_manifest
from ammd.export.file_metadata import Provenance
from ammd.model_origin import ModelOrigin

from .run_folder import RECIPE_NAME

_STUDENT = ("distill", "student")  # where a run keeps it


def provenance(name: str, prepared: Manifest, distilled: Manifest) -> Provenance:
    """Return the origin of the student that these two stages made in a run of the recipe `name`."""
    sections = {stage.stage: stage.settings for stage in (prepared, distilled)}
    teacher = _origin(prepared.results.get("teacher"))
    given = prepared.results.get("student")  # a model of its own, or what was cut from the teacher
    own = _origin(given.get("origin")) if isinstance(given, Mapping) and "source" in given else teacher
    return Provenance(
        name=name,
        recipe_sha256=hash_text(json.dumps(sections, sort_keys=True)),
        base_model=own,
        teacher=teacher,
    )


def provenance_of(checkpoint: Path) -> Provenance | None:
    """Return the origin of a checkpoint that is a run's student where it was made; None of any other.

    Raises:
        ArtifactError: The run's manifests are of another version.
    """
    folder = checkpoint.resolve()
    run = folder.parent.parent
    stages = (run / "prepare", run / "distill")
    if folder != run.joinpath(*_STUDENT) or not all(map(is_published, stages)):
        return None
    recipe = run / RECIPE_NAME
    name = tomllib.loads(recipe.read_text(encoding="utf-8"))["name"] if recipe.is_file() else run.parent.name
    return provenance(str(name), *map(read_manifest, stages))


def _origin(found: Any) -> ModelOrigin | None:
    return TypeAdapter(ModelOrigin).validate_python(found) if isinstance(found, Mapping) else None
