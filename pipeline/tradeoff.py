"""The trade of size, quality and speed: models as points, any two numbers as axes, and the best that can be had.

Places on the axes and their ticks are computed here, once for each number, so that the page's script only has to put
points where they say; the template draws the first pair of axes, which is what a page without scripts shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .columns import Better, Column, show, used_columns, value_of

FIRST_AXES = ("bytes", "kl_to_teacher_nats", "decode_tokens_per_s")  # across, up, and the area of the marks
# Greatest / least value of a logarithmic axis. Beyond it lies what rounding leaves of a zero, as the teacher's KL to
# itself, and a logarithm would give it all the room.
_LOGARITHMIC_FROM, _LOGARITHMIC_TO = 4.0, 1e4
_MARGIN = 0.06  # of the axis, at both ends
_DIGITS = 4  # of a place: a tenth of a pixel
_TICKS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One number of all points; None where it was not measured."""

    key: str
    title: str
    unit: str
    better: str  # `lower` or `higher`
    values: tuple[float | None, ...]
    places: tuple[float | None, ...]  # 0 to 1 along the axis
    ticks: tuple[tuple[float, str], ...]  # place, label

    @property
    def label(self) -> str:
        """Title, unit and the direction that is better."""
        return ", ".join(filter(None, [self.title, self.unit])) + f" ({self.better} is better)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One model."""

    name: str
    label: str  # a letter or two in the plot, explained by the table
    series: int  # number of its colour
    facts: tuple[tuple[str, str], ...]  # what it is called and its number with unit

    @property
    def text(self) -> str:
        """All of it in one line."""
        return f"{self.name}: " + ", ".join(f"{title} {value}" for title, value in self.facts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tradeoff:
    """Points and all axes that they can be seen along."""

    axes: tuple[Axis, ...]
    points: tuple[Point, ...]
    across: str
    up: str
    area: str  # "" where nothing else was measured

    def axis(self, key: str) -> Axis:
        """Return the axis of a number."""
        return next(axis for axis in self.axes if axis.key == key)

    @property
    def shown(self) -> tuple[int, ...]:
        """Numbers of the points that have a place on both first axes."""
        return shown_points(self.axis(self.across), self.axis(self.up))

    @property
    def front(self) -> tuple[int, ...]:
        """Numbers of the best points on the first axes, by their place across."""
        return pareto_front(self.axis(self.across), self.axis(self.up))

    def for_script(self) -> dict[str, Any]:
        """Return what the page's script reads."""
        return {
            "axes": {axis.key: asdict(axis) | {"label": axis.label} for axis in self.axes},
            "points": [asdict(point) for point in self.points],
        }


def build_tradeoff(
    rows: Sequence[Mapping[str, Any]], *, labels: Sequence[str], series: Sequence[int]
) -> Tradeoff | None:
    """Return the points of models and files of a summary; None where fewer than two numbers were measured.

    Args:
        rows: `name` and what tables of models show.
        labels: Of each row, short.
        series: Number of the colour of each row.
    """
    columns = used_columns(rows)
    if len(columns) < 2:
        return None
    axes = tuple(_axis(column, [value_of(row, column) for row in rows]) for column in columns)
    keys = [axis.key for axis in axes]
    wanted = [key for key in FIRST_AXES if key in keys]
    across, up, *rest = [*wanted, *(key for key in keys if key not in wanted)]
    return Tradeoff(
        axes=axes,
        points=tuple(
            Point(name=row["name"], label=label, series=number, facts=tuple(_facts(row, columns)))
            for row, label, number in zip(rows, labels, series, strict=True)
        ),
        across=across,
        up=up,
        area=rest[0] if rest else "",
    )


def shown_points(across: Axis, up: Axis) -> tuple[int, ...]:
    """Return the numbers of the points that have both."""
    pairs = zip(across.values, up.values, strict=True)
    return tuple(index for index, pair in enumerate(pairs) if None not in pair)


def pareto_front(across: Axis, up: Axis) -> tuple[int, ...]:
    """Return the numbers of the points that no other one is at least as good as in both and better in one."""
    costs = {index: (_cost(across, index), _cost(up, index)) for index in shown_points(across, up)}
    best = [
        index
        for index, cost in costs.items()
        if not any(other != cost and other[0] <= cost[0] and other[1] <= cost[1] for other in costs.values())
    ]
    return tuple(sorted(best, key=lambda index: across.places[index] or 0.0))


def _cost(axis: Axis, index: int) -> float:
    value = axis.values[index] or 0.0
    return value if axis.better == Better.LOWER.value else -value


def _facts(row: Mapping[str, Any], columns: Sequence[Column]) -> Sequence[tuple[str, str]]:
    found = [(column, value_of(row, column)) for column in columns]
    return [
        (column.title, f"{show(value, column)} {column.unit}".strip())
        for column, value in found
        if value is not None
    ]


def _axis(column: Column, values: Sequence[float | None]) -> Axis:
    import math

    known = [value for value in values if value is not None]
    low, high = min(known), max(known)
    is_logarithmic = low > 0 and _LOGARITHMIC_FROM <= high / low <= _LOGARITHMIC_TO

    def scaled(value: float) -> float:
        return math.log(value) if is_logarithmic else value

    width = scaled(high) - scaled(low)

    def place(value: float) -> float:
        share = (scaled(value) - scaled(low)) / width if width else 0.5
        return round(_MARGIN + (1 - 2 * _MARGIN) * share, _DIGITS)

    ticks = [
        (found, f"{tick:,.6g}")
        for tick in _ticks(low / column.per_unit, high / column.per_unit, is_logarithmic=is_logarithmic)
        if 0 <= (found := place(tick * column.per_unit)) <= 1
    ]
    return Axis(
        key=column.key,
        title=column.title,
        unit=column.unit,
        better=column.better.value,
        values=tuple(values),
        places=tuple(None if value is None else place(value) for value in values),
        ticks=tuple(ticks),
    )


def _ticks(low: float, high: float, *, is_logarithmic: bool) -> list[float]:
    """Return round numbers from `low` to `high`, and one beyond at either end."""
    from matplotlib.ticker import LogLocator, MaxNLocator

    if low == high:
        return [low]
    locator = LogLocator(subs=(1.0, 2.0, 5.0)) if is_logarithmic else MaxNLocator(_TICKS)
    return [float(tick) for tick in locator.tick_values(low, high) if tick > 0 or not is_logarithmic]
