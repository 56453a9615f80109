"""What a run comes to in a few lines: are the budgets met, are the files proven, which file is best at what."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from .bench_cells import cells_of_run
from .budget import show_value, title_of
from .columns import COLUMNS, Better, Column, show, value_of

# What a file may be the best at, and which word says so.
_BEST = (
    ("kl_to_teacher_nats", "closest to the teacher"),
    ("bytes", "smallest"),
    ("decode_tokens_per_s", "fastest"),
    ("peak_rss_bytes", "least memory"),
)


class Judgement(Enum):
    """How something stands."""

    GOOD = "good"
    BAD = "bad"
    OPEN = "open"  # not asked or not measured


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """One line of a verdict."""

    judgement: Judgement
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetRow:
    """One limit and what was measured, as people read them."""

    judgement: Judgement
    artifact: str
    metric: str
    limit: str
    value: str
    over_by: str  # empty where the limit is kept, or nothing was measured
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What comes first in a report."""

    headline: Statement
    statements: tuple[Statement, ...]
    budget: tuple[BudgetRow, ...]


def judge(summary: Mapping[str, Any]) -> Verdict:
    """Return the verdict on a run."""
    budget = summary.get("budget") or {}
    rows = tuple(_budget_row(row) for row in budget.get("rows", ()))
    return Verdict(
        headline=_headline(rows, met=budget.get("met")),
        statements=tuple(
            filter(None, (_proofs(summary), _measurements(summary), *best_of(summary["artifacts"])))
        ),
        budget=rows,
    )


def _headline(rows: tuple[BudgetRow, ...], *, met: bool | None) -> Statement:
    if not rows:
        text = "No budget was set" if met is None else "The budget limits no file"
        return Statement(judgement=Judgement.OPEN, text=text)
    if met:
        text = "The budget is met" if len(rows) == 1 else f"All {len(rows)} limits of the budget are met"
        return Statement(judgement=Judgement.GOOD, text=text)
    missed = sum(row.judgement is Judgement.BAD for row in rows)
    verb = "is" if missed == 1 else "are"
    text = (
        f"{missed} of {len(rows)} limits of the budget {verb} missed"
        if len(rows) > 1
        else "The budget is missed"
    )
    return Statement(judgement=Judgement.BAD, text=text)


def _budget_row(row: Mapping[str, Any]) -> BudgetRow:
    return BudgetRow(
        judgement=Judgement.GOOD if row["met"] else Judgement.BAD,
        artifact=row["artifact"],
        metric=title_of(row["metric"]),
        limit=show_value(row, "limit"),
        value=show_value(row, "value"),
        over_by="" if row["over_by"] is None else show_value(row, "over_by"),
        why=row.get("why", ""),
    )


def _proofs(summary: Mapping[str, Any]) -> Statement | None:
    parities = [row.get("parity") for row in summary["artifacts"]]
    if not parities:
        return None
    if open_ones := sum(parity is None for parity in parities):
        text = f"{open_ones} of {len(parities)} files are not proven to behave as the student does"
        return Statement(judgement=Judgement.OPEN, text=text)
    if faulty := sum(bool(parity["faults"]) for parity in parities if parity):
        text = f"{faulty} of {len(parities)} files do not behave as the student does"
        return Statement(judgement=Judgement.BAD, text=text)
    files = "The one file is" if len(parities) == 1 else f"All {len(parities)} files are"
    return Statement(judgement=Judgement.GOOD, text=f"{files} proven to behave as the student does")


def _measurements(summary: Mapping[str, Any]) -> Statement | None:
    counts = Counter(cell.state for cell in cells_of_run(summary))
    if not counts:
        return None
    text = "Measurements of speed: " + ", ".join(f"{count} {state}" for state, count in counts.most_common())
    judgement = Judgement.GOOD if set(counts) == {"good"} else Judgement.OPEN
    return Statement(judgement=judgement, text=text)


def best_of(files: Sequence[Mapping[str, Any]]) -> list[Statement]:
    """Return which of several files, as a summary has them, is the best at what."""
    columns = {column.key: column for column in COLUMNS}
    found: dict[str, list[str]] = {}
    for key, word in _BEST:
        column = columns[key]
        known = [(value, row) for row in files if (value := value_of(row, column)) is not None]
        if len(known) > 1:
            pick = min if column.better is Better.LOWER else max
            value, row = pick(known, key=lambda pair: pair[0])
            found.setdefault(row["name"], []).append(f"{word} ({_with_unit(value, column)})")
    return [
        Statement(judgement=Judgement.OPEN, text=f"{name}: {', '.join(words)}")
        for name, words in found.items()
    ]


def _with_unit(value: float, column: Column) -> str:
    return f"{show(value, column)} {column.unit}".strip()
