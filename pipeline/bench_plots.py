"""Plots of the benchmark: rate against threads and against depth, the times of tokens, the parts of memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .plots import COLOURS, INK, Plot, draw_svg, short_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_RATE = "decode_tokens_per_s"
_PERCENTILES = (50, 90, 95, 99)
_PARTS = (
    ("rss_anon_bytes", "anonymous"),
    ("rss_file_bytes", "file-mapped"),
    ("rss_shmem_bytes", "shared"),
    ("swap_bytes", "swapped out"),
)
_MIB = 2**20
_BAR = 0.55  # height of a bar, of the room that a model has


def draw_bench(bench: Mapping[str, Mapping[str, Any] | None]) -> list[Plot]:
    """Return the drawings for which there are numbers.

    Args:
        bench: Records of models by name; None was not measured.
    """
    records = {name: record for name, record in bench.items() if record and record.get(_RATE)}
    plots = (_threads(records), _depths(records), _latencies(records), _memory(records))
    return [plot for plot in plots if plot]


def _threads(records: Mapping[str, Mapping[str, Any]]) -> Plot | None:
    return _rates(
        _lines(records, "threads", same="prompt_tokens"),
        title="Decode rate and threads",
        caption="Medians with their 95 % intervals; a line that falls has too many threads",
        unit="threads",
    )


def _depths(records: Mapping[str, Mapping[str, Any]]) -> Plot | None:
    return _rates(
        _lines(records, "prompt_tokens", same="threads"),
        title="Decode rate and context depth",
        caption="Medians with their 95 % intervals: the deeper, the more keys and values a token reads",
        unit="tokens before the first decoded one",
    )


def _lines(
    records: Mapping[str, Mapping[str, Any]], key: str, *, same: str
) -> dict[str, list[tuple[float, float, float, float]]]:
    """Return the points of each model that has several."""
    found = {name: _points(record, key, same=same) for name, record in records.items()}
    return {name: points for name, points in found.items() if len(points) > 1}


def _points(record: Mapping[str, Any], key: str, *, same: str) -> list[tuple[float, float, float, float]]:
    """Return place, rate and interval of the rows that are as the record's own in `same`."""
    return sorted(
        (row[key], row[_RATE], row[f"{_RATE}_low"], row[f"{_RATE}_high"])
        for row in record.get("rows", ())
        if row.get(f"{_RATE}_low") and row.get(same) == record.get(same)
    )


def _rates(
    lines: Mapping[str, Sequence[tuple[float, float, float, float]]], *, title: str, caption: str, unit: str
) -> Plot | None:
    if not lines:
        return None

    def draw(axes: Axes) -> None:
        for index, (name, points) in enumerate(lines.items()):
            places, rates, lows, highs = zip(*points, strict=True)
            ends = [
                [rate - low for rate, low in zip(rates, lows, strict=True)],
                [high - rate for rate, high in zip(rates, highs, strict=True)],
            ]
            colour = COLOURS[index % len(COLOURS)]
            axes.errorbar(
                places,
                rates,
                yerr=ends,
                label=short_name(name),
                color=colour,
                marker="o",
                markersize=4,
                capsize=3,
                linewidth=1.4,
            )
        axes.set_xticks(sorted({point[0] for points in lines.values() for point in points}))
        axes.set_ylim(bottom=0)
        axes.set_xlabel(unit)
        axes.set_ylabel("tokens a second")
        axes.figure.legend(loc="outside lower center", ncols=3, fontsize=8)

    ends = (f"{name} {points[0][1]:.0f} to {points[-1][1]:.0f}" for name, points in lines.items())
    return Plot(title=title, caption=caption, svg=draw_svg(draw, salt=title), alt="; ".join(ends))


def _latencies(records: Mapping[str, Mapping[str, Any]]) -> Plot | None:
    times = {
        name: [1e3 * record[f"token_p{percent}_s"] for percent in _PERCENTILES]
        for name, record in records.items()
        if all(record.get(f"token_p{percent}_s") for percent in _PERCENTILES)
    }
    if not times:
        return None

    def draw(axes: Axes) -> None:
        for place, found in enumerate(times.values()):
            axes.plot([found[0], found[-1]], [place, place], color=COLOURS[0], linewidth=5, alpha=0.35)
            for percent, time in zip(_PERCENTILES, found, strict=True):
                marker = "o" if percent == _PERCENTILES[0] else "|"
                axes.plot([time], [place], color=COLOURS[0], marker=marker, markersize=7, linestyle="none")
        _name_bars(axes, list(times))
        axes.set_xlim(left=0)
        axes.set_xlabel("milliseconds a token")

    return Plot(
        title="Time of one token",
        caption="Dot: half of the tokens are faster; strokes: 90, 95 and 99 % are",
        svg=draw_svg(draw, salt="Time of one token"),
        alt="; ".join(f"{name} {found[0]:.1f} to {found[-1]:.1f} ms" for name, found in times.items()),
    )


def _memory(records: Mapping[str, Mapping[str, Any]]) -> Plot | None:
    known = {name: record for name, record in records.items() if record.get("rss_anon_bytes") is not None}
    parts = [part for part in _PARTS if any(record.get(part[0]) for record in known.values())]
    if not parts:
        return None

    def draw(axes: Axes) -> None:
        for place, record in enumerate(known.values()):
            left = 0.0
            for colour, (key, label) in zip(COLOURS, parts, strict=False):
                width = (record.get(key) or 0) / _MIB
                axes.barh(place, width, _BAR, left=left, color=colour, label="_" if place else label)
                left += width
            peak = record["peak_rss_bytes"] / _MIB
            ends = [place - _BAR / 2, place + _BAR / 2]
            axes.plot([peak, peak], ends, color=INK, linewidth=1.6, label="_" if place else "peak")
        _name_bars(axes, list(known))
        axes.set_xlabel("MiB")
        axes.figure.legend(loc="outside lower center", ncols=4, fontsize=8)

    return Plot(
        title="Memory of the process",
        caption="At the end of the measurement, and the peak of resident memory before it",
        svg=draw_svg(draw, salt="Memory of the process"),
        alt="; ".join(
            f"{name} {record['peak_rss_bytes'] / _MIB:.0f} MiB at the peak" for name, record in known.items()
        ),
    )


def _name_bars(axes: Axes, names: Sequence[str]) -> None:
    """Write the names beside the bars, the first on top."""
    axes.set_yticks(range(len(names)), list(map(short_name, names)))
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
