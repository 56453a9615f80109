"""Runs on disk: find one by what a user types, read a finished one back."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ammd.artifact import MANIFEST_NAME, load_manifest
from ammd.errors import ArtifactError, RecipeError

from .cache import Done
from .recipe import Recipe, load_recipe
from .run_folder import RECIPE_NAME, SUMMARY_NAME
from .run_log import LOG_NAME
from .stages import STAGES

REFERENCES = "refs"  # folder below the runs folder: names that stand for runs
_REFERENCE = r"[A-Za-z0-9][A-Za-z0-9._-]*"


def find_run(text: str, *, runs_dir: Path) -> Path:
    """Return the folder of the run that `text` names.

    That is a folder, `name/id`, a reference that `set_reference` made, an id's beginning, or a recipe's name.

    Raises:
        ArtifactError: There is none, or more than one.
    """
    for candidate in (Path(text), runs_dir / text):
        if (candidate / RECIPE_NAME).is_file():
            return candidate
    if found := _referred(text, runs_dir=runs_dir):
        return found
    matches = [
        folder for folder in _folders(runs_dir) if folder.name.startswith(text) or folder.parent.name == text
    ]
    if len(matches) == 1:
        return matches[0]
    known = ", ".join(f"{folder.parent.name}/{folder.name}" for folder in matches or _folders(runs_dir))
    raise ArtifactError(
        f"{'several runs answer to' if matches else 'there is no run'} `{text}` in `{runs_dir}`",
        hint=f"there are: {known}" if known else "`ammd run` makes the first one",
        path=str(runs_dir),
    )


def newest_run(runs_dir: Path) -> Path:
    """Return the folder of the run whose log was written to last.

    Raises:
        ArtifactError: There is none.
    """
    logs = [folder / LOG_NAME for folder in _folders(runs_dir) if (folder / LOG_NAME).is_file()]
    if not logs:
        raise ArtifactError(
            f"no run in `{runs_dir}` has a log", hint="`ammd run` writes one", path=str(runs_dir)
        )
    return max(logs, key=lambda path: path.stat().st_mtime).parent


def set_reference(name: str, folder: Path, *, runs_dir: Path) -> Path:
    """Let `name` stand for a finished run from now on, in `find_run`; return the file that says so.

    Raises:
        RecipeError: That cannot be a name.
        ArtifactError: The run is not finished.
    """
    if not re.fullmatch(_REFERENCE, name):
        raise RecipeError(
            f"`{name}` cannot stand for a run",
            hint="letters, digits, `.`, `_` and `-`, a letter or digit first",
        )
    read_summary(folder)
    inside = folder.resolve().is_relative_to(runs_dir.resolve())
    target = folder.resolve().relative_to(runs_dir.resolve()) if inside else folder.resolve()
    path = runs_dir / REFERENCES / name
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{name}.tmp")
    temporary.write_text(f"{target.as_posix()}\n", encoding="utf-8")
    temporary.replace(path)
    return path


def newest_finished(runs_dir: Path, *, but: Path) -> Path:
    """Return the run below `runs_dir` that was finished last, leaving out `but`.

    Raises:
        ArtifactError: There is no other.
    """
    finished = [folder for folder in _folders(runs_dir) if (folder / SUMMARY_NAME).is_file()]
    others = [folder for folder in finished if folder.resolve() != but.resolve()]
    if not others:
        raise ArtifactError(
            f"there is no finished run in `{runs_dir}` besides `{but.parent.name}/{but.name}`",
            hint="`ammd run` makes one",
            path=str(runs_dir),
        )
    return max(others, key=lambda folder: (folder / SUMMARY_NAME).stat().st_mtime)


def referred_runs(runs_dir: Path) -> Iterator[tuple[str, Path]]:
    """Yield each reference and the folder of the run that it stands for; a run that is gone is left out."""
    for path in sorted((runs_dir / REFERENCES).glob("[!.]*")):
        try:
            if found := _referred(path.name, runs_dir=runs_dir):
                yield path.name, found
        except ArtifactError:
            continue


def _referred(text: str, *, runs_dir: Path) -> Path | None:
    path = runs_dir / REFERENCES / text
    if not re.fullmatch(_REFERENCE, text) or not path.is_file():
        return None
    named = path.read_text(encoding="utf-8", errors="replace").strip()
    folder = runs_dir / named
    if not (folder / RECIPE_NAME).is_file():
        raise ArtifactError(
            f"`{text}` stands for the run `{named}`, which is not there any more",
            hint=f"`ammd compare --set-baseline {text} RUN` names another",
            path=str(path),
        )
    return folder


def read_run(folder: Path) -> tuple[Recipe, dict[str, Done]]:
    """Return the recipe and the finished stages of a run, every file verified.

    Raises:
        ArtifactError: A stage's files are not what its manifest says.
        RecipeError: The recipe in the folder is of another version.
    """
    done = {
        name: Done(folder=folder / name, manifest=load_manifest(folder / name), cached=True)
        for name in STAGES
        if (folder / name / MANIFEST_NAME).is_file()
    }
    return load_recipe(folder / RECIPE_NAME, check_files=False), done


def read_finished(folder: Path) -> tuple[Recipe, dict[str, Done]]:
    """Return what `read_run` does, of a run that has all its stages.

    Raises:
        ArtifactError: A stage is missing or altered.
        RecipeError: The recipe in the folder is of another version.
    """
    recipe, done = read_run(folder)
    if missing := [name for name in STAGES if name not in done]:
        raise ArtifactError(
            f"run `{folder}` is not finished: it lacks {', '.join(missing)}",
            hint=f"`ammd run {folder / RECIPE_NAME}` finishes it",
            path=str(folder),
        )
    return recipe, done


def read_summary(folder: Path) -> dict[str, Any]:
    """Return a finished run's summary document.

    Raises:
        ArtifactError: The run has not come to its end, or the document is damaged.
    """
    path = folder / SUMMARY_NAME
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        raise ArtifactError(
            f"run `{folder}` is not finished: it has no {SUMMARY_NAME}",
            hint=f"`ammd run {folder / RECIPE_NAME}` finishes it",
            path=str(path),
        ) from exc
    except ValueError as exc:
        raise ArtifactError(
            f"`{path}` is not JSON", hint="`ammd report RUN` writes it anew", path=str(path)
        ) from exc
    if not isinstance(document, dict):
        raise ArtifactError(f"`{path}` is not a summary", hint="`ammd report RUN` writes it anew")
    return document


def _folders(runs_dir: Path) -> Iterator[Path]:
    yield from (path.parent for path in sorted(runs_dir.glob(f"*/*/{RECIPE_NAME}")))
