"""The tasks that a recipe names: are they there, which files are they, and what stands for them in a stage's key.

A key holds hashes of the prompts and answers themselves: another wording or another row makes the stage stale, a
change of the task that it does not read does not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ammd.distill.settings import PrepareSettings
from ammd.errors import DataError, RecipeError
from ammd.runtime.settings import EvaluateSettings
from ammd.runtime.task_run import load_questions
from ammd.settings import Settings
from ammd.task import Split, Task, load_task
from ammd.task_data import digest_rows, read_task_rows, task_files

from .faults import Fault

ROLES = ("prompts", "heldout")  # keys of `prepare` that the splits of a task stand in for


def find_task_faults(
    key: tuple[str, ...], name: str, data: str | None, *, is_trained_on: bool = False
) -> list[Fault]:
    """Return what hinders a run from reading the task that a recipe's `key` names.

    Args:
        key: Where the recipe names it.
        name: The task.
        data: The data folder.
        is_trained_on: Look for what a training needs, else for the test split.
    """
    needs_folder = False
    try:
        task = load_task(name)
        splits: tuple[Split, ...] = task.training_splits() if is_trained_on else ("test",)
        for split in splits:
            needs_folder = data is None and split in task.data
            task_files(task, split, data=None if data is None else Path(data))
    except RecipeError as exc:
        if needs_folder:
            return [Fault(path=("data",), text=f"is missing: {exc}; {exc.hint}")]
        return [Fault(path=key, value=name, text="; ".join(filter(None, (str(exc), exc.hint))))]
    except DataError as exc:
        return [Fault(path=("data",), value=data, text=str(exc))]
    return []


def default_response_tokens(name: object) -> int | None:
    """Return the longest answer of the task of this name; None where there is no such task."""
    try:
        return load_task(name).response_tokens if isinstance(name, str) else None
    except RecipeError:
        return None


def training_files(settings: Settings) -> list[Path]:
    """Return the files of the task that a prepare stage is trained on, its own definition among them."""
    task = _task_of(settings)
    if task is None:
        return []
    found = dict.fromkeys(
        path for split in task.training_splits() for path in task_files(task, split, data=_data_of(settings))
    )
    name = getattr(settings, "task", "")
    return [*found, *([Path(name)] if name.endswith(".toml") else [])]


def key_training_task(keyed: dict[str, Any], settings: Settings) -> None:
    """Put hashes of a task's rows where the hashes of the files would stand that it replaces."""
    task, data = _task_of(settings), _data_of(settings)
    if task is None:
        return
    for role, split in zip(ROLES, task.training_splits(), strict=True):
        digest = digest_rows(task, split, read_task_rows(task, split, data=data), data=data)
        keyed[role] = f"sha256:{digest.rows_sha256}"
    keyed |= {"task": task.name, "data": None}


def judging_files(settings: Settings) -> list[Path]:
    """Return the files of the tasks that an evaluate stage judges by, their own definitions among them."""
    found: dict[Path, None] = {}
    for name in settings.tasks if isinstance(settings, EvaluateSettings) else ():
        found |= dict.fromkeys(task_files(load_task(name), "test", data=_data_of(settings)))
        if name.endswith(".toml"):
            found[Path(name)] = None
    return list(found)


def key_judging_tasks(keyed: dict[str, Any], settings: Settings) -> None:
    """Put hashes of tasks and of the rows that are asked in the place of the tasks' names and of the data folder."""
    if isinstance(settings, EvaluateSettings) and settings.tasks:
        questions = [
            load_questions(name, data=_data_of(settings), limit=settings.task_rows) for name in settings.tasks
        ]
        keyed["tasks"] = [
            f"{one.task.name} sha256:{one.sha256} {one.digest.rows_sha256}" for one in questions
        ]
        keyed["data"] = None


def _task_of(settings: Settings) -> Task | None:
    named = settings.task if isinstance(settings, PrepareSettings) else None
    return None if named is None else load_task(named)


def _data_of(settings: Settings) -> Path | None:
    data = getattr(settings, "data", None)
    return None if data is None else Path(data)
