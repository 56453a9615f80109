"""Paths as scripts give them: a string, a `Path`, or several of either."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

AnyPath = str | os.PathLike[str]


def as_path(path: AnyPath | None) -> Path | None:
    """Return a path, None for None."""
    return None if path is None else Path(path)


def as_paths(paths: AnyPath | Sequence[AnyPath]) -> list[Path]:
    """Return one path or several as a list."""
    return [Path(paths)] if isinstance(paths, str | os.PathLike) else [Path(path) for path in paths]
