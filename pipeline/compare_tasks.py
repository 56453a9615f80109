"""What two runs' models differ by in language tasks, on the same rows and, of drawn answers, the same seeds."""

from __future__ import annotations

from collections.abc import Iterator

from ammd.runtime.task_scores import METRICS, compare_metric
from ammd.task import TaskKind

from .judged_run import JudgedRun, Pair
from .regression import Change

_SAME = (
    "task_sha256",
    "rows_sha256",
)  # of tasks whose scores are of the same questions, asked in the same way


def task_changes(first: JudgedRun, second: JudgedRun, pair: Pair) -> Iterator[Change]:
    """Give the change of every number of each task that both runs asked alike: shown, not judged."""
    old_tasks, new_tasks = (run.summary.get("tasks") or {} for run in (first, second))
    for name, task in new_tasks.items():
        if any(old_tasks.get(name, {}).get(key) != task[key] for key in _SAME):
            continue
        sides = first.task_rows.get((pair.first, name)), second.task_rows.get((pair.second, name))
        for metric in METRICS[TaskKind(task["kind"])] if all(sides) else ():
            found = compare_metric(metric, *(side or () for side in sides))
            if found is None:
                continue
            yield Change(
                model=pair.label,
                metric=f"{name}.{metric.key}",
                first=found.first,
                second=found.second,
                change=found.second - found.first,
                is_ratio=False,
                low=found.low,
                high=found.high,
                prompts=task["rows"],
                threads=None,
                limit=None,
                verdict=None,
            )
