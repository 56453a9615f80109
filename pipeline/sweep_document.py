"""What came of a sweep, as one JSON document: each run's choices, how it ended, and its models' key numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from ammd.errors import (
    AmmdError,
    ArtifactError,
    BudgetExceededError,
    DistillError,
    EngineError,
    ExportError,
    RecipeError,
)

from .columns import COLUMNS, Better, Column, value_of
from .sweep import Sweep
from .table import model_rows

SCHEMA = "ammd.sweep/1"
STUDENT = "student"
_FAMILY = (AmmdError, RecipeError, ArtifactError, DistillError, ExportError, EngineError, BudgetExceededError)
_BY_CODE = {kind.exit_code: kind for kind in _FAMILY}


class RunState(Enum):
    """Where a run of a sweep is."""

    WAITING = "not begun"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    ENDED = "ended"  # before its time, because another failed


@dataclass(slots=True, kw_only=True)
class RunEnd:
    """One run of a sweep and what came of it."""

    run: str
    folder: Path
    choices: Mapping[str, Any]
    state: RunState = RunState.WAITING
    exit_code: int | None = None
    error: str | None = None
    hint: str = ""
    summary: Mapping[str, Any] | None = None

    def row(self) -> dict[str, Any]:
        """Return it as the document has it."""
        summary = self.summary or {"stages": [], "models": [], "artifacts": [], "seconds": None}
        return {
            "run": self.run,
            "path": str(self.folder.resolve()),
            "choices": dict(self.choices),
            "state": self.state.value,
            "exit_code": self.exit_code,
            "error": self.error,
            "hint": self.hint,
            "seconds": summary["seconds"],
            "stages": summary["stages"],
            "models": {model["name"]: _numbers(model) for model in model_rows(summary)},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """By which number runs are sorted."""

    model: str
    column: Column

    def rank(self, row: Mapping[str, Any]) -> tuple[bool, float]:
        """Return a sorting key: the best first, runs without the number last."""
        value = row["models"].get(self.model, {}).get(self.column.key)
        if value is None:
            return True, 0.0
        return False, -value if self.column.better is Better.HIGHER else value


def parse_sort(text: str) -> Order:
    """Return the order that `MODEL.METRIC`, or `METRIC` of the student, names.

    Raises:
        RecipeError: There is no such metric.
    """
    model, _, metric = text.rpartition(".")
    known = {column.key: column for column in COLUMNS}
    if metric not in known:
        hint = f"METRIC of the student or MODEL.METRIC, of {', '.join(known)}"
        raise RecipeError(f"there is no metric `{text}` to sort by", hint=hint)
    return Order(model=model or STUDENT, column=known[metric])


def sweep_document(
    sweep: Sweep, ends: Sequence[RunEnd], *, runs_dir: Path, seconds: float, order: Order | None
) -> dict[str, Any]:
    """Return the document of a sweep that is over."""
    rows = [end.row() for end in ends]
    if order:
        rows.sort(key=order.rank)
    return {
        "schema": SCHEMA,
        "name": sweep.name,
        "path": str(runs_dir.resolve()),
        "keys": list(sweep.keys),
        "sort": f"{order.model}.{order.column.key}" if order else None,
        "seconds": round(seconds, 3),
        "exit_code": max(row["exit_code"] or 0 for row in rows),
        "runs": rows,
    }


def check_sweep(document: Mapping[str, Any]) -> None:
    """Check that every run of a sweep ended well.

    Raises:
        AmmdError: What the run with the highest exit code ended with.
    """
    failed = [row for row in document["runs"] if row["exit_code"]]
    if failed:
        worst = max(failed, key=lambda row: int(row["exit_code"]))
        message = f"{len(failed)} of {len(document['runs'])} runs failed; `{worst['run']}`: {worst['error']}"
        raise _BY_CODE[worst["exit_code"]](message, hint=worst["hint"])


def _numbers(model: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of the tables' columns that a model has."""
    values = {column.key: value_of(model, column) for column in COLUMNS}
    return {key: value for key, value in values.items() if value is not None}
