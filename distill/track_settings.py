"""Settings of trackers: programs that draw a training's numbers while it goes on."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from ammd.settings import Settings

Tracker = Literal["tensorboard", "mlflow"]
# Tracker -> the module that has to be there, and the package to install.
PACKAGES: Mapping[str, tuple[str, str]] = {
    "tensorboard": ("tensorboard", "tensorboard"),
    "mlflow": ("mlflow", "mlflow-skinny"),
}


class TrackSettings(Settings):
    """Where the rows of `distill/curves.jsonl` go besides. It changes nothing in what is made, nor which run it is."""

    trackers: tuple[Tracker, ...] = Field(default=(), max_length=len(PACKAGES))
    """`tensorboard` writes to `track/` in the run's folder (`tensorboard --logdir runs`); `mlflow` to where the
    variable `MLFLOW_TRACKING_URI` says, under the recipe's name. Both are in the extra `track`."""


def missing_packages(settings: TrackSettings) -> list[tuple[str, str]]:
    """Return each tracker that is not installed, with the package that it needs."""
    needed = [(tracker, *PACKAGES[tracker]) for tracker in settings.trackers]
    return [(tracker, package) for tracker, module, package in needed if not importlib.util.find_spec(module)]
