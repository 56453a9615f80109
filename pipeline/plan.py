"""What a sweep will do, told before it does it: which stages are there, which are made, and which are shared.

A stage of a run is the same as another run's if its settings are and the stages that it reads are; so far as code and
libraries are those of the manifests on disk, it is there already. Bytes are looked at only when a stage is used.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ammd.artifact import Manifest, hash_text, read_manifest
from ammd.errors import ArtifactError

from .cache import stage_key
from .open_run import localize, run_folder
from .recipe import Recipe
from .resources import count_parameters, estimate_need
from .stages import STAGES, Stage
from .sweep import Sweep

SCHEMA = "ammd.plan/1"
THERE, MAKE, SHARE = "there", "make", "share"


def plan_sweep(
    sweep: Sweep, *, runs_dir: Path, until: str = "report", stages: Mapping[str, Stage] = STAGES
) -> dict[str, Any]:
    """Return the document of a sweep that has not begun: its runs, and for each stage whether it has to be made."""
    names = [*stages][: [*stages].index(until) + 1] if until in stages else [*stages]
    there = set(_identities_on_disk(runs_dir / sweep.name, stages))
    settings = _KeyedSettings()
    makers: dict[str, str] = {}
    counts: Counter[str] = Counter()
    runs = []
    for point in sweep.points:
        run = f"{sweep.name}/{run_folder(point.recipe, runs_dir=runs_dir).name}"
        states: dict[str, str] = {}
        identities: dict[str, str] = {}
        for name in names:
            identity = _identity(stages[name], settings.of(point.recipe, name), identities)
            identities[name] = identity
            is_first = makers.setdefault(identity, run) == run
            states[name] = THERE if identity in there else MAKE if is_first else SHARE
        needed = [stages[name] for name, state in states.items() if state == MAKE]
        memory_bytes = _memory_of(point.recipe, needed) if needed else 0
        counts.update(states.values())
        runs.append(
            {"run": run, "choices": dict(point.choices), "stages": states, "memory_bytes": memory_bytes}
        )
    return {
        "schema": SCHEMA,
        "name": sweep.name,
        "path": str(runs_dir.resolve()),
        "keys": list(sweep.keys),
        "there": counts[THERE],
        "make": counts[MAKE],
        "share": counts[SHARE],
        "runs": runs,
    }


def counts_text(plan: Mapping[str, Any]) -> str:
    """Return how many stages a plan makes, shares and finds, in words."""
    return f"{plan['make']} stages to make, {plan['share']} shared, {plan['there']} there already"


def _memory_of(recipe: Recipe, stages: list[Stage]) -> int:
    """Return an estimate of the most memory that one of a run's `stages` takes; without a known teacher, the least."""
    return estimate_need(
        stages,
        parameters=count_parameters(recipe.prepare.teacher) or 0,
        processes={"distill": recipe.distill.processes},
    ).memory_bytes


class _KeyedSettings:
    """Settings with data files by content; each combination of them is worked out once."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], dict[str, Any]] = {}

    def of(self, recipe: Recipe, section: str) -> dict[str, Any]:
        """Return a section's settings as a stage's key has them."""
        settings = getattr(recipe, section)
        key = section, settings.model_dump_json()
        if key not in self._known:
            self._known[key] = localize(section, settings)[1]
        return self._known[key]


def _identity(stage: Stage, settings: Mapping[str, Any], read: Mapping[str, str]) -> str:
    """Return what tells a stage from others before its inputs exist: settings, and the identities of what it reads."""
    document = [stage.name, settings, [read[name] for name in stage.reads]]
    return hash_text(json.dumps(document, sort_keys=True))


def _identities_on_disk(folder: Path, stages: Mapping[str, Stage]) -> Iterator[str]:
    """Yield the identity of each stage in the runs below `folder` that this code would make the same."""
    for run in sorted(path.parent for path in folder.glob("*/recipe.toml")):
        found: dict[str, str] = {}
        for name, stage in stages.items():
            manifest = _read(run / name)
            if manifest is None or any(read not in found for read in stage.reads):
                continue
            if stage_key(stage, settings=manifest.settings, inputs=manifest.inputs) == manifest.key:
                found[name] = _identity(stage, manifest.settings, found)
                yield found[name]


def _read(folder: Path) -> Manifest | None:
    try:
        return read_manifest(folder)
    except (ArtifactError, OSError):
        return None
