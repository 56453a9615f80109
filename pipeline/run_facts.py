"""What is known of a run, read from its folder, as plain values under dotted keys.

    seed, prepare.teacher, distill.objective.kind, …   its resolved settings
    data.prompts, data.heldout, data.teacher           hashes of what it was made from
    metrics.MODEL.NUMBER, best.NUMBER                  quality, size and speed of each model; of the best file
    costs.NUMBER, stages.STAGE.NUMBER                  seconds, memory, tokens, energy
    versions.LIBRARY, origin.student_sha256, budget.met, stages, bytes

Files that are missing or damaged tell nothing; the stages themselves are checked when a run goes on.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ammd.artifact import Manifest, read_manifest
from ammd.errors import ArtifactError
from ammd.folder_lock import LOCK_NAME

from .columns import COLUMNS, value_of
from .costs import total_costs
from .run_folder import RECIPE_NAME, SUMMARY_NAME
from .stages import STAGES

Value = str | int | float | bool | list[Any]
_DATA = ("prompts", "heldout", "teacher")  # settings of `prepare`, by content in its manifest
_BEST_KL_SHARE = 1.1  # of the lowest KL among a run's files, which the best file may have


def read_facts(folder: Path) -> dict[str, Value]:
    """Return all of it."""
    recipe, summary = _read_recipe(folder / RECIPE_NAME), _read_summary(folder / SUMMARY_NAME)
    manifests = dict(_read_manifests(folder))
    facts: dict[str, Any] = {**recipe, "metrics": _metrics(summary), "best": _best(summary)}
    if prepared := manifests.get("prepare"):
        facts["data"] = {key: prepared.settings.get(key) for key in _DATA}
    if manifests:
        facts["versions"] = list(manifests.values())[-1].versions
        facts["costs"] = total_costs(list(manifests.values()))
    facts["origin"] = {"student_sha256": (summary.get("origin") or {}).get("student_sha256")}
    flat = dict(flatten(facts))
    if budget := summary.get("budget"):
        flat["budget.met"] = budget["met"]
    for name, manifest in manifests.items():
        costs = total_costs([manifest])
        for key in ("seconds", "cpu_seconds", "peak_rss_bytes", "joules"):
            if (value := costs[key]) is not None:
                flat[f"stages.{name}.{key}"] = value
    return flat | {"stages": list(manifests), "bytes": folder_bytes(folder)}


def folder_bytes(folder: Path) -> int:
    """Return the sizes of all files below `folder`, those that it shares with other runs included.

    The lock's file says who holds it, and so another size while the run is made; it does not count.
    """
    total = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                total += folder_bytes(Path(entry.path))
            elif entry.is_file(follow_symlinks=False) and entry.name != LOCK_NAME:
                total += entry.stat(follow_symlinks=False).st_size
    return total


def _read_recipe(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _read_summary(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def _read_manifests(folder: Path) -> Iterator[tuple[str, Manifest]]:
    for name in STAGES:
        try:
            yield name, read_manifest(folder / name)
        except (ArtifactError, OSError):
            continue


def _model_rows(summary: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [*summary.get("models", []), *summary.get("artifacts", [])]


def _metrics(summary: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """Return the numbers of each model: those of every table, and all of its quality."""
    metrics = {}
    for row in _model_rows(summary):
        shown = {column.key: value_of(row, column) for column in COLUMNS}
        metrics[row["name"]] = {**_numbers(row.get("quality") or {}), **shown}
    return metrics


def _numbers(section: Mapping[str, Any]) -> dict[str, float]:
    return {key: value for key, value in section.items() if isinstance(value, int | float)}


def _best(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return name and numbers of the file that most would take: the smallest of those that are near the teacher."""
    by_kl = {
        row["name"]: kl
        for row in summary.get("artifacts", [])
        if (kl := (row.get("quality") or {}).get("kl_to_teacher_nats")) is not None
    }
    if not by_kl:
        return {}
    limit = min(by_kl.values()) * _BEST_KL_SHARE
    near = [row for row in summary["artifacts"] if by_kl.get(row["name"], limit + 1) <= limit]
    best = min(near, key=lambda row: row["bytes"])
    return {"file": best["name"], **{column.key: value_of(best, column) for column in COLUMNS}}


def flatten(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Value]]:
    """Yield what lies in nested tables under dotted keys; what is None is not there."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}", list(value) if isinstance(value, list | tuple) else value
