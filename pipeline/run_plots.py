"""Drawings of runs as a whole: memory while one was made, and what each of several cost."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .cost_columns import COSTS, Cost, costs_of, show_cost
from .plots import COLOURS, INK, Plot, draw_svg
from .run_log import SAMPLE_S, StageMemory

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MIB = 2**20


def draw_memory(stages: Sequence[StageMemory]) -> Plot | None:
    """Return the memory of the stages one after the other; None without samples."""
    if not stages:
        return None
    title = "Memory while the run was made"

    def draw(axes: Axes) -> None:
        begin = 0.0
        for index, stage in enumerate(stages):
            times = [(begin + second) / 60 for second in stage.seconds]
            sizes = [size / _MIB for size in stage.rss_bytes]
            axes.fill_between(times, sizes, color=COLOURS[index % len(COLOURS)], alpha=0.3, linewidth=0)
            axes.plot(times, sizes, color=COLOURS[index % len(COLOURS)], linewidth=1.4, label=stage.stage)
            if begin:
                axes.axvline(begin / 60, color=INK, alpha=0.3, linewidth=0.6, linestyle=":")
            begin += stage.seconds[-1] + SAMPLE_S
        axes.set_xlim(0, begin / 60)
        axes.set_ylim(bottom=0)
        axes.set_xlabel("minutes, stage after stage")
        axes.set_ylabel("MiB")
        axes.figure.legend(loc="outside lower center", ncols=3, fontsize=8)

    return Plot(
        title=title,
        caption="Resident memory of all processes of a stage together, every two seconds; stages that were made by "
        "an earlier version or taken from another run are not in the log",
        svg=draw_svg(draw, salt=title),
        alt="; ".join(f"{stage.stage} at most {max(stage.rss_bytes) / _MIB:.0f} MiB" for stage in stages),
    )


def draw_costs(runs: Sequence[tuple[datetime.datetime, Mapping[str, Any]]]) -> list[Plot]:
    """Return what each of several runs cost by when it was made, a drawing for each kind of cost that two have.

    Args:
        runs: When a run was made, and its summary; oldest first.
    """
    known = [(made, costs_of(summary)) for made, summary in runs]
    plots = []
    for cost in COSTS:
        points = [(made, costs[cost.key]) for made, costs in known if cost.key in costs]
        if len(points) > 1:
            plots.append(_cost_plot(cost, points))
    return plots


def _cost_plot(cost: Cost, points: Sequence[tuple[datetime.datetime, float]]) -> Plot:
    def draw(axes: Axes) -> None:
        from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

        times, values = zip(*points, strict=True)
        shown = [value / cost.per_unit for value in values]
        axes.plot(times, shown, color=COLOURS[0], marker="o", markersize=4, linewidth=1)
        locator = AutoDateLocator(minticks=3, maxticks=6)
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
        axes.set_ylim(bottom=0)
        axes.set_ylabel(cost.unit)

    first, last = (show_cost(points[end][1], cost) for end in (0, -1))
    title = cost.title[:1].upper() + cost.title[1:]
    return Plot(
        title=title,
        caption=f"{title} of each run, {cost.unit}, by when it was made",
        svg=draw_svg(draw, salt=f"cost {cost.key}"),
        alt=f"{first} {cost.unit} of the oldest run, {last} of the newest",
    )
