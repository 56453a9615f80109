"""Cells of a long comparison: each is computed once, by whichever worker comes to it first, and kept as a file.

A worker that is killed leaves no result and no lock, so the comparison goes on by starting it again; several
workers, also started at different times, share the cells of one folder.
"""

from __future__ import annotations

import json
import multiprocessing
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from ammd.artifact import write_json

Result = dict[str, Any]
Found = TypeVar("Found")


class Unfinished(Exception):  # noqa: N818  not an error: the next call goes on
    """As many cells as were asked for have been computed, and others are missing."""


_WAIT_SECONDS = 2.0  # between two looks at cells that another worker is computing


class Cells:
    """The results of one folder, by name."""

    def __init__(self, folder: Path, *, at_most: int | None = None) -> None:
        """Take the folder, which may be there already, and how many cells are to be computed before `Unfinished`."""
        self._folder = folder
        self._left = at_most
        folder.mkdir(parents=True, exist_ok=True)

    def get(self, name: str) -> Result | None:
        """Return a finished result, or None."""
        path = self._path(name)
        if not path.is_file():
            return None
        found: Result = json.loads(path.read_text(encoding="utf-8"))
        return found

    def compute(self, wanted: Iterable[str], compute: Callable[[str], Result]) -> Mapping[str, Result]:
        """Return the results of all `wanted`, computing those that no other worker has or is at.

        Raises:
            Unfinished: Some are missing, and no more are to be computed.
        """
        names = list(wanted)
        while missing := [name for name in names if self.get(name) is None]:
            if self._left == 0:
                raise Unfinished(f"{len(missing)} of {len(names)} cells are missing")
            if not any(self._compute_one(name, compute) for name in missing):
                time.sleep(_WAIT_SECONDS)
        return {name: result for name in names if (result := self.get(name)) is not None}

    def _compute_one(self, name: str, compute: Callable[[str], Result]) -> bool:
        """Compute a cell unless it is there or locked; return whether it is there now."""
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(path.with_suffix(".lock"), timeout=0):
                if self.get(name) is None:
                    write_json(path, compute(name))
                    if self._left is not None:
                        self._left -= 1
        except Timeout:
            return False
        return True

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.json"


def in_workers(jobs: int, compute: Callable[..., Found], *arguments: Any) -> Found:
    """Return what `compute` gives; where several workers are asked for, once as many have computed cells with it."""
    if jobs > 1:
        with multiprocessing.get_context("spawn").Pool(jobs) as pool:
            pool.starmap(compute, [arguments] * jobs, chunksize=1)
    return compute(*arguments)
