"""Follow a run until it ends: a picture that is drawn anew on a terminal, lines elsewhere, documents for programs.

The log is opened anew at each look: on a network file system that is what fetches what another machine has written.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .table import build_table, escape
from .watch_state import RunState, RunView, RunWatch, document, exit_code, latest_steps

if TYPE_CHECKING:
    from rich.console import RenderableType

_LOOK_S = 1.0
_LINE_S = 15.0  # between two lines that say how far the same work is
_BARS = "▁▂▃▄▅▆▇█"
_SPARK_POINTS = 24
# Of a training step: key, what it is called here, digits.
_TRAINING = (
    ("loss", "loss", 3),
    ("kl_nats", "KL", 3),
    ("d_off", "d off-policy", 3),
    ("d_on", "d on-policy", 3),
    ("tokens_per_s", "tokens/s", 0),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What one look at a run has found."""

    view: RunView
    state: RunState
    silent_s: float

    @property
    def document(self) -> dict[str, Any]:
        """As JSON values."""
        return document(self.view, self.state, silent_s=self.silent_s)


def watch_run(folder: Path, *, once: bool, as_json: bool) -> int:
    """Show the run in `folder` until it ends, or once, and return the exit code that it has ended with, 0 before.

    Raises:
        ArtifactError: The run has no log.
    """
    show = _show_json if as_json else _show_lines
    if not once and not as_json and sys.stdout.isatty():
        show = _show_live
    sights = _sights(RunWatch(folder), once=once)
    if once and not as_json:
        from rich.console import Console

        sight = next(sights)
        Console(width=None if sys.stdout.isatty() else 200).print(*_picture(sight), sep="\n")
    else:
        sight = show(sights)
    return exit_code(sight.view, sight.state) or 0


def _sights(watch: RunWatch, *, once: bool, sleep: Callable[[float], None] = time.sleep) -> Iterator[Sight]:
    """Look again and again until the run has ended."""
    heard = time.monotonic()
    while True:
        silent_s = time.monotonic() - heard
        view, state, has_news = watch.look(silent_s=silent_s)
        if has_news:
            heard, silent_s = time.monotonic(), 0.0
        yield Sight(view=view, state=state, silent_s=silent_s)
        if once or state.has_ended:
            return
        sleep(_LOOK_S)


def _show_json(sights: Iterator[Sight]) -> Sight:
    """Print one document a line whenever there is something new."""
    before: dict[str, Any] = {}
    for sight in sights:
        found = sight.document
        if {**found, "silent_s": 0, "seconds": 0} != {**before, "silent_s": 0, "seconds": 0}:
            click.echo(json.dumps(found, ensure_ascii=False))
        before = found
    return sight


def _show_lines(sights: Iterator[Sight]) -> Sight:
    """Print a line when something begins or ends, and now and then how far it is."""
    said: set[str] = set()
    next_line = 0.0
    for sight in sights:
        found = sight.document
        for line in map(_stage_line, filter(lambda stage: stage["state"] != "waiting", found["stages"])):
            if line not in said:
                said.add(line)
                click.echo(line)
        progress = found["progress"]
        if progress and (progress["label"] not in said or time.monotonic() >= next_line):
            said.add(progress["label"])
            next_line = time.monotonic() + _LINE_S
            click.echo(_progress_line(found))
        if sight.state is RunState.SILENT and time.monotonic() >= next_line:
            next_line = time.monotonic() + _LINE_S
            click.echo(_headline(found))
    click.echo(_headline(sight.document))
    return sight


def _show_live(sights: Iterator[Sight]) -> Sight:
    from rich.console import Group
    from rich.live import Live

    with Live(auto_refresh=False) as live:
        for sight in sights:
            live.update(Group(*_picture(sight)), refresh=True)
    return sight


def _picture(sight: Sight) -> list[RenderableType]:
    found = sight.document
    table = build_table(escape(_headline(found)), "stage", ["", "time", "peak RSS\nMiB"])
    table.columns[1].justify = "left"
    for stage in found["stages"]:
        peak = stage["peak_rss_bytes"]
        if peak is None and stage["stage"] == found["stage"]:
            peak = found["peak_rss_bytes"]
        table.add_row(
            stage["stage"],
            f"[bold]{stage['state']}[/]" if stage["stage"] == found["stage"] else stage["state"],
            "" if stage["seconds"] is None else duration(stage["seconds"]),
            "" if peak is None else f"{peak / 2**20:,.0f}",
        )
    return [table, *_progress_bar(found), *_sparks(sight)]


def _progress_bar(found: Mapping[str, Any]) -> list[RenderableType]:
    progress = found["progress"]
    if not progress or found["exit_code"] is not None:
        return []
    from rich.columns import Columns
    from rich.progress_bar import ProgressBar

    bar = ProgressBar(total=progress["total"], completed=progress["done"], width=40)
    # What the note of a training says stands below, with its past.
    note = "" if found["training"] else progress["note"]
    return [Columns([bar, escape(" ".join(filter(None, [_share_and_rest(progress), note])))])]


def _sparks(sight: Sight) -> list[str]:
    """Return the numbers of training and memory, each with its latest values as little bars."""
    lines = []
    steps = latest_steps(sight.view)
    phase = [row for row in steps if row.get("phase") == steps[-1].get("phase")]
    for key, title, digits in _TRAINING:
        values = [row[key] for row in phase if isinstance(row.get(key), int | float)]
        if values:
            lines.append(f"{title:>14}  {values[-1]:<10,.{digits}f} {spark(values)}")
    if sight.view.rss_bytes and sight.view.running:
        sizes = sight.view.rss_bytes
        lines.append(f"{'memory, MiB':>14}  {sizes[-1] / 2**20:<10,.0f} {spark(sizes)}")
    return lines


def spark(values: Sequence[float]) -> str:
    """Return the last values as bars from the least to the most of them."""
    shown = values[-_SPARK_POINTS:]
    low, high = min(shown), max(shown)
    steps = len(_BARS) - 1
    return "".join(_BARS[round(steps * (value - low) / (high - low)) if high > low else 0] for value in shown)


def duration(seconds: float) -> str:
    """Return a time as people say it, in its two largest units."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _headline(found: Mapping[str, Any]) -> str:
    run, took = found["run"], duration(found["seconds"])
    match found["state"]:
        case "running":
            return f"{run}: running for {took}"
        case "silent":
            return f"{run}: no sign of life for {duration(found['silent_s'])}, after {took}"
        case "finished" if not found["exit_code"]:
            return f"{run}: finished in {took}"
        case "finished":
            return f"{run}: finished in {took}; what it measured ends it with exit code {found['exit_code']}"
        case "interrupted":
            return f"{run}: interrupted after {took}; `ammd run` again goes on"
        case "died":
            where = f"in stage `{found['stage']}`" if found["stage"] else "between stages"
            return f"{run}: its process is gone, {where}, {took} after it began; `ammd run` again goes on"
        case _:
            return f"{run}: failed after {took}: {found['error']}"


def _stage_line(stage: Mapping[str, Any]) -> str:
    if stage["state"] in ("running", "cut off"):
        return f"{stage['stage']}: {stage['state']}"
    state = "there already" if stage["state"] == "found" else "done"
    return (
        f"{stage['stage']}: {state}, {duration(stage['seconds'])}, {stage['peak_rss_bytes'] / 2**20:,.0f} MiB"
    )


def _progress_line(found: Mapping[str, Any]) -> str:
    progress = found["progress"]
    memory = f"{found['rss_bytes'] / 2**20:,.0f} MiB" if found["rss_bytes"] else ""
    return f"{progress['label']}: " + ", ".join(
        filter(None, [_share_and_rest(progress), progress["note"], memory])
    )


def _share_and_rest(progress: Mapping[str, Any]) -> str:
    share = progress["done"] / progress["total"] if progress["total"] else 1.0
    left = "" if progress["left_s"] is None or share >= 1 else f", {duration(progress['left_s'])} left"
    return f"{share:.0%}{left}"
