"""What a run's folder is called by and what lies at its top; `<runs folder>/<name>/<run id>`.

Imports nothing heavy: `ammd runs` looks at thousands of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

RECIPE_NAME = "recipe.toml"
# Written from all stages together, and out of date as soon as one is made anew.
SUMMARY_NAME = "summary.json"
REPORT_NAME = "report.html"
CARD_NAME = "MODEL_CARD.md"


def run_name(folder: Path) -> str:
    """Return what users call the run in `folder`: `name/id`."""
    return f"{folder.parent.name}/{folder.name}"


def list_candidates(runs_dir: Path) -> Iterator[tuple[str, int]]:
    """Yield `name/id` and the time of change, in nanoseconds, of each folder that may be a run's.

    One look at each folder and none into it. The time changes whenever something in the folder's top is made,
    replaced or removed, so also with each stage that is published.
    """
    for name in _folders(runs_dir):
        for run in _folders(name.path):
            yield f"{name.name}/{run.name}", run.stat().st_mtime_ns


def _folders(path: str | Path) -> Iterator[os.DirEntry[str]]:
    """Yield what is a folder, or a link to one, and not hidden; nothing where there is none or it may not be read."""
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if not entry.name.startswith(".") and entry.is_dir():
                    yield entry
    except OSError:
        return
