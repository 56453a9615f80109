"""The columns of every table of models: on screen, in the report and in comparisons.

One list, so that a number has the same name, unit, digits and direction wherever it is shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any


class Better(Enum):
    """In which direction a number improves."""

    LOWER = "lower"
    HIGHER = "higher"


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One number of a model or file."""

    section: str  # key of the row's part that holds it; "" for the row itself
    key: str
    title: str
    unit: str  # as shown; "" for a pure number
    per_unit: float  # shown number = stored number / per_unit
    digits: int
    better: Better


_NOISE = 1e-7  # below float32's precision: a teacher's distance to itself
COLUMNS = (
    Column(
        section="",
        key="bytes",
        title="size",
        unit="MiB",
        per_unit=2**20,
        digits=0,
        better=Better.LOWER,
    ),
    Column(
        section="quality",
        key="kl_to_teacher_nats",
        title="KL to teacher",
        unit="nats",
        per_unit=1,
        digits=3,
        better=Better.LOWER,
    ),
    Column(
        section="quality",
        key="exposure_bias_nats",
        title="exposure bias",
        unit="nats",
        per_unit=1,
        digits=3,
        better=Better.LOWER,
    ),
    Column(
        section="quality",
        key="task_score_kept",
        title="task score kept",
        unit="%",
        per_unit=0.01,
        digits=1,
        better=Better.HIGHER,
    ),
    Column(
        section="quality",
        key="rouge_l",
        title="ROUGE-L",
        unit="%",
        per_unit=0.01,
        digits=1,
        better=Better.HIGHER,
    ),
    Column(
        section="quality",
        key="repetition",
        title="repetition",
        unit="%",
        per_unit=0.01,
        digits=1,
        better=Better.LOWER,
    ),
    Column(
        section="quality",
        key="sampled_nll_under_teacher_nats",
        title="sampled NLL",
        unit="nats",
        per_unit=1,
        digits=2,
        better=Better.LOWER,
    ),
    Column(
        section="quality",
        key="sampled_nll_under_teacher_nats_per_byte",
        title="sampled NLL",
        unit="nats/byte",
        per_unit=1,
        digits=3,
        better=Better.LOWER,
    ),
    Column(
        section="parity",
        key="kl_nats",
        title="KL to student",
        unit="nats",
        per_unit=1,
        digits=5,
        better=Better.LOWER,
    ),
    Column(
        section="bench",
        key="decode_tokens_per_s",
        title="decode",
        unit="tok/s",
        per_unit=1,
        digits=0,
        better=Better.HIGHER,
    ),
    Column(
        section="bench",
        key="ttft_s",
        title="TTFT",
        unit="ms",
        per_unit=1e-3,
        digits=0,
        better=Better.LOWER,
    ),
    Column(
        section="bench",
        key="peak_rss_bytes",
        title="peak RSS",
        unit="MiB",
        per_unit=2**20,
        digits=0,
        better=Better.LOWER,
    ),
)


def column_of(key: str) -> Column:
    """Return the column of this key."""
    return next(column for column in COLUMNS if column.key == key)


def value_of(row: Mapping[str, Any], column: Column) -> float | None:
    """Return the stored number of `column` in a row of the summary, or None where it was not measured."""
    part = row.get(column.section) if column.section else row
    value = part.get(column.key) if isinstance(part, Mapping) else None
    return float(value) if isinstance(value, int | float) else None


def show(value: float | None, column: Column) -> str:
    """Return the number as tables show it, without its unit."""
    if value is None:
        return "–"
    shown = value / column.per_unit
    text = f"{shown:,.{column.digits}f}"
    lost = abs(shown) > _NOISE and not text.strip("-0.")
    return f"{shown:.0e}" if lost else text  # small is not nothing


def used_columns(rows: Sequence[Mapping[str, Any]]) -> tuple[Column, ...]:
    """Return the columns for which at least one row has a number."""
    return tuple(column for column in COLUMNS if any(value_of(row, column) is not None for row in rows))
