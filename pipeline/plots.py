"""Plots of the report as SVG text, to be put into a page.

Axes and words take the page's own text colour (`currentColor`) and data its `--series0` to `--series7`, so one drawing
serves light and dark.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# matplotlib knows no `currentColor`; this colour stands for it and is replaced in the text.
INK = "#010203"
# These stand for the page's colours of series in the same way.
COLOURS = tuple(f"#0102{place:02x}" for place in range(0x10, 0x18))
_STYLE = {
    "svg.fonttype": "none",  # words stay words: selectable, and in the reader's font
    "font.family": "sans-serif",
    "font.size": 9,
    "text.parse_math": False,  # a dollar sign in a name is one
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
_NAME_CHARACTERS = 24
_SIZE_INCHES = (4.2, 2.9)  # drawn for a phone's width; a wide page puts three side by side


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """One drawing."""

    title: str
    caption: str
    svg: str
    alt: str  # what it shows, for those who do not see it


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
            svg = _draw_lines(curves, present, salt=title)
            alt = "; ".join(_ends(curves, line) for line in present)
            plots.append(Plot(title=title, caption=caption, svg=svg, alt=alt))
    return plots


def _ends(curves: Sequence[Mapping[str, Any]], line: _Curve) -> str:
    """Say from where to where a curve goes, in each phase that has it."""
    parts = []
    for phase in dict.fromkeys(row.get("phase") for row in curves):
        values = [
            y for row in curves if row.get("phase") == phase and (y := _number(row, line.key)) is not None
        ]
        if values:
            parts.append(f"from {values[0]:.3g} to {values[-1]:.3g} in phase {phase}")
    return f"{line.label} {', '.join(parts)}"


def draw_together(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Plot]:
    """Return loss, both moment-matching distances and KL of several runs, a line for each run that has them."""
    clocked = {name: _running_seconds(curves) for name, curves in runs.items()}
    plots = []
    for key, title, caption in (
        (
            "d_off",
            "Distance, off-policy",
            "How far the critic tells student from teacher on the teacher's texts",
        ),
        ("d_on", "Distance, on-policy", "The same on the student's own texts"),
        (
            "kl_nats",
            "KL to the teacher",
            "Forward KL on the teacher's texts of each training batch, nats a token",
        ),
        ("loss", "Loss", "Training loss of each phase; objectives may differ"),
    ):
        lines = {
            name: [(row["seconds"], y) for row in curves if (y := _number(row, key)) is not None]
            for name, curves in clocked.items()
        }
        lines = {name: points for name, points in lines.items() if points}
        if lines:
            ends = (f"{name} ends at {points[-1][1]:.3g}" for name, points in lines.items())
            svg = _draw_runs(lines, salt=f"runs {key}")
            plots.append(Plot(title=title, caption=caption, svg=svg, alt="; ".join(ends)))
    return plots


def _draw_runs(lines: Mapping[str, Sequence[tuple[float, float]]], *, salt: str) -> str:
    def draw(axes: Axes) -> None:
        for index, (name, points) in enumerate(lines.items()):
            axes.plot(*zip(*points, strict=True), color=COLOURS[index], linewidth=1.2, label=short_name(name))
        axes.set_xlim(left=0)
        axes.set_xlabel("seconds of training")
        axes.figure.legend(loc="outside lower center", ncols=2, fontsize=7)

    return draw_svg(draw, salt=salt)


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


def short_name(name: str) -> str:
    """Return a name that leaves room for the drawing."""
    return name if len(name) <= _NAME_CHARACTERS else f"{name[: _NAME_CHARACTERS - 1]}…"


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
    for number, colour in enumerate(COLOURS):
        text = text.replace(colour, f"var(--series{number})")
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(id|href)="(#?)', lambda found: f'{found[1]}="{found[2]}{_slug(salt)}-', text)
    text = text.replace("url(#", f"url(#{_slug(salt)}-")
    # The page decides the width; the view box keeps the shape. The white paper goes.
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    return text.replace('style="fill: #ffffff"', 'style="fill: none"')


def _slug(text: str) -> str:
    return re.sub(r"[^a-z]+", "-", text.lower())


def _number(row: Mapping[str, Any], key: str) -> float | None:
    value = row.get(key)
    return float(value) if isinstance(value, int | float) else None
