"""Rows of a task from a hub: fetched at the commit that the task names, or read from a copy in the data folder.

`datasets` reads both, so a copy is whatever it reads: a folder `ORG/NAME` with the data set's own files, Parquet or
JSONL, laid out as on the hub. It runs no code of a data set.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import DataError, RecipeError

if TYPE_CHECKING:
    from .task import HubData, Split


def check_reader(hub: HubData) -> None:
    """Check that what reads a hub's data sets is installed.

    Raises:
        RecipeError: It is not.
    """
    if importlib.util.find_spec("datasets") is None:
        raise RecipeError(
            f"`{hub.id}` is read by the package `datasets`, which is not installed",
            hint="`pip install 'ammd[hub]'`",
        )


def local_copy(hub: HubData, data: Path | None) -> Path | None:
    """Return the folder below the data folder that holds the data set, None where there is none."""
    folder = data / hub.id if data is not None else None
    return folder if folder is not None and folder.is_dir() else None


def copied_files(folder: Path) -> tuple[Path, ...]:
    """Return the files of a copy, but for what git or the hub's client keep beside them."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return tuple(
        sorted(
            path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)
        )
    )


def read_hub_rows(hub: HubData, split: Split, *, data: Path | None) -> list[tuple[int, Mapping[str, Any]]]:
    """Return the rows of a split, each with its place, from 1.

    Raises:
        DataError: `datasets` cannot read or fetch them.
    """
    import datasets

    folder = local_copy(hub, data)
    name = hub.splits[split]
    where = f"`{folder}`" if folder else f"`{hub.id}` at `{hub.revision}`"
    try:
        if folder:  # streamed: a cache of it would be a second copy, and could be older
            rows = datasets.load_dataset(str(folder), name=hub.config, split=name, streaming=True)
        else:
            rows = datasets.load_dataset(hub.id, name=hub.config, split=name, revision=hub.revision)
        return list(enumerate(rows, start=1))
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as exc:
        reason = " ".join(str(exc).split())
        hint = "" if folder else f"or put a copy of it into the data folder, as `{hub.id}`"
        raise DataError(f"cannot read split `{name}` of {where}: {reason}", hint=hint) from exc
