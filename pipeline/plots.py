"""Plots of the report as SVG text, to be put into a page.

Axes and words take the page's own text colour (`currentColor`), so one drawing serves light and dark; data
colours are of middle brightness and differ in lightness too, for those who do not tell hues apart.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .columns import value_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# matplotlib knows no `currentColor`; this colour stands for it and is replaced in the text.
INK = "#010203"
COLOURS = ("#3b82c4", "#e07b39", "#4c9f70", "#a05cc0", "#c2477f", "#8a8f98", "#b8912a", "#2fa3a8")
_STYLE = {
    "svg.fonttype": "none",  # words stay words: selectable, and in the reader's font
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "legend.frameon": False,
    "grid.color": INK,
    "grid.alpha": 0.15,
    "grid.linewidth": 0.6,
}
_SIZE_INCHES = (4.8, 3.1)  # drawn for a phone's width; a wide page puts two side by side


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """One drawing."""

    title: str
    caption: str
    svg: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Curve:
    key: str
    label: str


def draw_curves(curves: Sequence[Mapping[str, Any]]) -> list[Plot]:
    """Return the training curves against seconds; a drawing without data is left out."""
    wanted = (
        (
            "Loss",
            "Training loss of each phase; the two phases minimise different losses",
            (_Curve(key="loss", label="loss"),),
        ),
        (
            "Moment-matching distances",
            "How far the critic tells student from teacher, on the teacher's texts and on the student's own",
            (_Curve(key="d_off", label="off-policy"), _Curve(key="d_on", label="on-policy")),
        ),
        (
            "Share of the closed form",
            "How much of the best critic's value the learned critics hold; 1 is all of it",
            (
                _Curve(key="critic_share_off", label="off-policy"),
                _Curve(key="critic_share_on", label="on-policy"),
            ),
        ),
        (
            "KL to the teacher",
            "Forward KL on the teacher's texts of each training batch, nats a token",
            (_Curve(key="kl_nats", label="KL"),),
        ),
    )
    curves = _running_seconds(curves)
    plots = []
    for title, caption, lines in wanted:
        present = [line for line in lines if any(_number(row, line.key) is not None for row in curves)]
        if present:
            plots.append(Plot(title=title, caption=caption, svg=_draw_lines(curves, present, salt=title)))
    return plots


def draw_trade(rows: Sequence[Mapping[str, Any]]) -> Plot | None:
    """Return quality against size, each dot's area its decode speed; None without measured rows.

    Args:
        rows: Models and files of the summary.
    """
    points = [
        (row, row["bytes"] / 2**20, quality["kl_to_teacher_nats"], _speed(row))
        for row in rows
        if (quality := row.get("quality")) and quality.get("kl_to_teacher_nats") is not None
    ]
    if not points:
        return None

    def draw(axes: Axes) -> None:
        fastest = max((speed for *_, speed in points if speed), default=1.0)
        handles = []
        for index, (row, size, kl, speed) in enumerate(points):
            shape: dict[str, Any] = {
                "color": COLOURS[index % len(COLOURS)],
                "marker": "o" if "format" in row else "s",
            }
            area = 20 + 280 * speed / fastest if speed else 20
            axes.scatter([size], [kl], s=area, alpha=0.75, linewidths=0, **shape)
            handles.append(axes.scatter([], [], s=28, linewidths=0, label=row["name"], **shape))
        axes.set_xscale("log")
        _plain_ticks(axes, [size for _, size, *_ in points])
        axes.margins(0.12, 0.15)
        axes.set_xlabel("size, MiB")
        axes.set_ylabel("KL to teacher, nats")
        # Names beside the dots would lie on each other: a student and its files are close by design.
        axes.figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8)

    return Plot(
        title="Quality, size, speed",
        caption="Left and low is better, a larger mark decodes faster; squares: checkpoints, circles: files",
        svg=draw_svg(draw, salt="trade"),
    )


def _draw_lines(curves: Sequence[Mapping[str, Any]], lines: Sequence[_Curve], *, salt: str) -> str:
    def draw(axes: Axes) -> None:
        for index, line in enumerate(lines):
            label = line.label
            # Phase by phase: what a phase minimises is not what the one before it did.
            for phase in dict.fromkeys(row.get("phase") for row in curves):
                of_phase = [row for row in curves if row.get("phase") == phase]
                points = [
                    (row["seconds"], y) for row in of_phase if (y := _number(row, line.key)) is not None
                ]
                if points:
                    axes.plot(*zip(*points, strict=True), color=COLOURS[index], linewidth=1.4, label=label)
                    label = "_"  # one entry of the legend for all phases
        if border := _phase_border(curves):
            axes.axvline(border, color=INK, alpha=0.35, linewidth=0.8, linestyle=":")
            axes.text(border, 1, " AMMD ▸", transform=axes.get_xaxis_transform(), va="top", fontsize=8)
        axes.set_xlim(0, max(row["seconds"] for row in curves))
        axes.set_xlabel("seconds of training")
        if axes.get_ylim()[0] > 0:
            axes.set_ylim(bottom=0)  # a game's loss may be negative, and is shown then
        if len(lines) > 1:
            axes.legend()

    return draw_svg(draw, salt=salt)


def _running_seconds(curves: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows with one clock for all phases: in the file each phase starts its own."""
    rows: list[dict[str, Any]] = []
    before = 0.0
    for row in curves:
        if rows and row["phase"] != rows[-1]["phase"]:
            before = rows[-1]["seconds"]
        rows.append({**row, "seconds": before + row["seconds"]})
    return rows


def _phase_border(curves: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the second at which the second phase begins, if both phases are there."""
    first = next((row["seconds"] for row in curves if not _is_warm(row)), None)
    return float(first) if first is not None and _is_warm(curves[0]) else None


def _is_warm(row: Mapping[str, Any]) -> bool:
    """Tell whether a step is of the warm start: of phase `warm`, or of one of its shares, such as `warm 2`."""
    return str(row.get("phase")).partition(" ")[0] == "warm"


def draw_svg(draw: Any, *, salt: str) -> str:
    """Return a drawing; `draw` fills its axes, `salt` tells it from others on the page."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # The salt keeps the ids of two drawings on one page apart, and the same drawing the same bytes.
    with mpl.rc_context({**_STYLE, "svg.hashsalt": salt}):
        figure = Figure(figsize=_SIZE_INCHES, layout="constrained")
        axes = figure.add_subplot()
        axes.grid(visible=True)
        draw(axes)
        stream = io.StringIO()
        FigureCanvasSVG(figure).print_svg(stream, metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(id|href)="(#?)', lambda found: f'{found[1]}="{found[2]}{_slug(salt)}-', text)
    text = text.replace("url(#", f"url(#{_slug(salt)}-")
    # The page decides the width; the view box keeps the shape. The white paper goes.
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    return text.replace('style="fill: #ffffff"', 'style="fill: none"')


def _slug(text: str) -> str:
    return re.sub(r"[^a-z]+", "-", text.lower())


def _plain_ticks(axes: Axes, values: Sequence[float]) -> None:
    """Label a logarithmic axis with plain numbers at its own decades and halves."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _position: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    if max(values) <= 1.05 * min(values):
        axes.set_xlim(min(values) / 2, max(values) * 2)


def _speed(row: Mapping[str, Any]) -> float | None:
    from .columns import COLUMNS

    column = next(column for column in COLUMNS if column.key == "decode_tokens_per_s")
    return value_of(row, column)


def _number(row: Mapping[str, Any], key: str) -> float | None:
    value = row.get(key)
    return float(value) if isinstance(value, int | float) else None
