"""Scores in language tasks as tables: one a task, a line for each model, each number with its interval."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ammd.runtime.task_scores import METRICS, TaskMetric
from ammd.task import TaskKind

from .table import build_table, escape

if TYPE_CHECKING:
    from rich.table import Table


def task_tables(
    tasks: Mapping[str, Mapping[str, Any]], models: Sequence[Mapping[str, Any]]
) -> Iterator[Table]:
    """Give a table for each task that a model has answered.

    Args:
        tasks: What was asked, by name.
        models: Rows with `name` and, under `tasks`, the numbers of each.
    """
    for name, task in tasks.items():
        title, headings, rows = task_cells(name, task, models)
        if not rows:
            continue
        table = build_table(title, "model", headings)
        for model, *cells in rows:
            table.add_row(escape(model), *cells)
        yield table


def task_cells(
    name: str, task: Mapping[str, Any], models: Sequence[Mapping[str, Any]]
) -> tuple[str, list[str], list[tuple[str, ...]]]:
    """Return a task's title, the headings beside `model`, and a row of texts for each model that has answered it."""
    answered = [
        (model["name"], model["tasks"][name]) for model in models if name in (model.get("tasks") or {})
    ]
    metrics = [
        metric
        for metric in METRICS[TaskKind(task["kind"])]
        if any(metric.key in numbers["metrics"] for _, numbers in answered)
    ]
    headings = [f"{metric.title}, %" if metric.percent else metric.title for metric in metrics]
    rows = [
        (model, *(_cell(metric, numbers["metrics"]) for metric in metrics)) for model, numbers in answered
    ]
    seeds = f", mean of {len(task['seeds'])} seeds" if task["seeds"] else ""
    return f"{name}, version {task['version']}: {task['rows']} rows of {task['split']}{seeds}", headings, rows


def _cell(metric: TaskMetric, found: Mapping[str, Mapping[str, float]]) -> str:
    """Return a number with its interval: `27.3 (25.1 to 29.0)`."""
    if metric.key not in found:
        return "–"
    scale, digits = (100, 1) if metric.percent else (1, 2)
    value, low, high = (f"{scale * found[metric.key][key]:.{digits}f}" for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"
