"""Scores in language tasks as texts for tables: one a task, a line for each model, each number with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ammd.runtime.task_scores import METRICS, TaskMetric
from ammd.task import TaskKind


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskCells:
    """The table of a task."""

    title: str
    metrics: tuple[TaskMetric, ...]  # what its columns beside the model's name are
    rows: tuple[tuple[str, ...], ...]  # of each model that has answered: its name, its numbers


def task_cells(name: str, task: Mapping[str, Any], models: Sequence[Mapping[str, Any]]) -> TaskCells:
    """Return the table of a task.

    Args:
        name: Of the task.
        task: What was asked.
        models: Rows with `name` and, under `tasks`, the numbers of each task.
    """
    answered = [
        (model["name"], model["tasks"][name]) for model in models if name in (model.get("tasks") or {})
    ]
    metrics = tuple(
        metric
        for metric in METRICS[TaskKind(task["kind"])]
        if any(metric.key in numbers["metrics"] for _, numbers in answered)
    )
    seeds = f", mean of {len(task['seeds'])} seeds" if task["seeds"] else ""
    return TaskCells(
        title=f"{name}, version {task['version']}: {task['rows']} rows of {task['split']}{seeds}",
        metrics=metrics,
        rows=tuple(
            (model, *(_cell(metric, numbers["metrics"]) for metric in metrics)) for model, numbers in answered
        ),
    )


def _cell(metric: TaskMetric, found: Mapping[str, Mapping[str, float]]) -> str:
    """Return a number with its interval: `27.3 (25.1 to 29.0)`."""
    if metric.key not in found:
        return "–"
    scale, digits = (100, 1) if metric.percent else (1, 2)
    value, low, high = (f"{scale * found[metric.key][key]:.{digits}f}" for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"
