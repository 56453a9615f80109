"""What a model is asked in a task: one job a row for each thing that is measured on it, and for each sampling seed."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from ammd.task import Task, TaskKind
from ammd.task_data import TaskRow


class JobKind(StrEnum):
    """What is measured on a row."""

    ANSWER = "answer"  # the text that the model writes
    CHOICES = "choices"  # how likely each choice is
    TEXT = "text"  # how likely the reference is, as plain text


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One question to a model. `row` is the row's line in its file, so that fewer rows are asked in the same way."""

    kind: JobKind
    row: int
    seed: int | None = None  # of a drawn answer

    @property
    def draw_seed(self) -> int:
        """Start of the random numbers of a drawn answer: its own for each seed and row, whatever is asked before it."""
        return int.from_bytes(hashlib.sha256(f"{self.seed}/{self.row}".encode()).digest()[:8])


def jobs_of(task: Task, rows: Sequence[TaskRow]) -> tuple[Job, ...]:
    """Return what a model is asked, row by row."""
    kinds = {TaskKind.PERPLEXITY: (JobKind.TEXT,), TaskKind.CHOICE: (JobKind.CHOICES, JobKind.ANSWER)}
    seeds: tuple[int | None, ...] = task.seeds if task.temperature > 0 else (None,)
    return tuple(
        Job(kind=kind, row=row.line, seed=seed)
        for row in rows
        for kind in kinds.get(task.kind, (JobKind.ANSWER,))
        for seed in (seeds if kind is JobKind.ANSWER else (None,))
    )


def job_of(record: Mapping[str, Any]) -> Job:
    """Return the job that a record answers."""
    return Job(kind=JobKind(record["job"]), row=record["row"], seed=record["seed"])
