"""A stage on files of the user's own, outside any run: what `ammd export`, `verify`, `eval` and `bench` do.

The same code in the same kind of process as in a run; only the inputs are named by hand. Inside a run folder
what is not named (teacher, held-out prompts, where a student comes from) is found there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ammd.artifact import (
    Manifest,
    hash_records,
    is_published,
    list_files,
    load_manifest,
    publish,
    remove_partial,
    staging_folder,
)
from ammd.errors import ArtifactError, RecipeError
from ammd.machine import library_versions
from ammd.runtime.artifact_ref import EngineKind, choose_kind
from ammd.runtime.bench_document import SCHEMA as BENCH_SCHEMA
from ammd.runtime.verify import artifact_name
from ammd.scratch import scratch_folder
from ammd.settings import Settings

from .cache import Stated, stage_key
from .launch import run_in_child
from .provenance import provenance_of
from .stages import STAGES

_SCHEMAS = {"bench": BENCH_SCHEMA}


def measure(stage: str, *, settings: Settings, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Run a stage for its numbers alone; the files it writes are thrown away.

    Raises:
        AmmdError: What the stage could not do.
    """
    with scratch_folder() as folder:
        outcome = run_in_child(STAGES[stage], inputs=inputs, settings=settings, folder=folder)
    return {"schema": _SCHEMAS.get(stage, f"ammd.{stage}/1"), **outcome.costs, **outcome.results}


def export_to(
    folder: Path,
    *,
    checkpoint: Path,
    texts: Path | None = None,
    imatrix: Path | None = None,
    settings: Settings,
    force: bool,
) -> dict[str, Any]:
    """Export a checkpoint into `folder` and return what was written.

    Args:
        folder: To write.
        checkpoint: To export.
        texts: What an importance matrix is measured on, unless the settings name others.
        imatrix: One that is there already.
        settings: Of the stage.
        force: Replace an export that is there.

    Raises:
        ArtifactError: There is no such checkpoint, or `folder` is there already and `force` is not given.
        ExportError: The checkpoint cannot be converted.
    """
    if not (checkpoint / "config.json").is_file():
        raise ArtifactError(
            f"`{checkpoint}` is not a checkpoint: it has no config.json", path=str(checkpoint)
        )
    if folder.exists() and not force:
        raise ArtifactError(
            f"`{folder}` is there already",
            hint="`--force` replaces it, `--out` names another",
            path=str(folder),
        )
    if folder.exists() and not (folder / "manifest.json").is_file() and any(folder.iterdir()):
        raise ArtifactError(
            f"`{folder}` holds files that are not an export, and is not replaced",
            hint="`--out` names another folder",
            path=str(folder),
        )
    stage, more = STAGES["export"], {"texts": texts, "imatrix": imatrix}
    remove_partial(folder)
    with staging_folder(folder) as staging:
        paths: dict[str, Any] = {"checkpoint": str(checkpoint.resolve())}
        paths |= {name: str(path.resolve()) for name, path in more.items() if path}
        inputs = {"checkpoint": hash_records(list_files(checkpoint))}
        if origin := provenance_of(checkpoint):
            stated = Stated(value=asdict(origin))
            paths["provenance"], inputs["provenance"] = stated.value, stated.hash
        outcome = run_in_child(stage, inputs=paths, settings=settings, folder=staging)
        document = settings.model_dump(mode="json")
        manifest = Manifest(
            stage="export",
            key=stage_key(stage, settings=document, inputs=inputs),
            files=list_files(staging),
            settings=document,
            inputs=inputs,
            versions=library_versions(),
            results=outcome.results,
            **outcome.costs,
        )
        publish(staging, folder, manifest)
    rows = [{**row, "path": str((folder / row["path"]).resolve())} for row in outcome.results["artifacts"]]
    return {"schema": "ammd.export/1", "path": str(folder.resolve()), **outcome.costs, "artifacts": rows}


def named(paths: Sequence[Path], *, engine: str | None = None) -> list[dict[str, str | None]]:
    """Return a name for each model path: that of its scheme, with its folder's where that is not enough.

    Raises:
        ArtifactError: Nothing is at one of the paths.
        EngineError: `engine` cannot run one of them.
        RecipeError: The same model is named twice.
    """
    for path in paths:
        if not path.exists():
            raise ArtifactError(f"no model at `{path}`", path=str(path))
        if engine:
            choose_kind(path, EngineKind(engine))
    real = [path.resolve() for path in paths]
    if len(set(real)) != len(real):
        raise RecipeError("the same model is named twice")
    names = [artifact_name(path) for path in real]
    return [
        {
            "name": name if names.count(name) == 1 else f"{path.parent.name}/{name}",
            "path": str(path),
            "engine": engine,
        }
        for name, path in zip(names, real, strict=True)
    ]


def find_in_run(near: Path, part: str, *, option: str) -> Path:
    """Return `part` (as `prepare/heldout.jsonl`) of the run in which the path `near` lies.

    Raises:
        RecipeError: `near` does not lie in a run, so the user has to name it.
    """
    if found := part_of_run(near, part):
        return found
    raise RecipeError(
        f"`{near}` does not lie in a run folder, so `{part}` cannot be found beside it",
        hint=f"name it with `{option}`",
    )


def part_of_run(near: Path, part: str) -> Path | None:
    """Return `part` of the run in which the path `near` lies, if it lies in one that has it."""
    return next(
        (folder / part for folder in near.resolve().parents if (folder / part).exists()),
        None,
    )


def check_recorded(path: Path) -> None:
    """Check a model against the manifest that an export or a run has put beside it, if there is one.

    Raises:
        ArtifactError: A byte is not what was written.
    """
    folder = path.resolve().parent
    if is_published(folder):
        load_manifest(folder)
