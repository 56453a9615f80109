"""Progress on stderr: a bar on a terminal, a line now and then elsewhere, nothing when quiet.

Stages run in child processes that inherit stderr; `AMMD_PROGRESS` (`auto`, `plain`, `off`) travels with them. In a run
it also goes into the run's log, whatever is shown, for who watches from elsewhere.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from .event_log import EventLog

if TYPE_CHECKING:
    from rich.progress import ProgressColumn

ENVIRONMENT = "AMMD_PROGRESS"
_LINE_INTERVAL_S = 15.0
_LOG_INTERVAL_S = 1.0


class Progress(Protocol):
    """What a stage calls while it works."""

    def __call__(self, done: float, note: str = "") -> None:
        """Report that `done` of the total is finished; `note` carries the current numbers."""


@contextmanager
def progress(label: str, total: float, *, silent: bool = False) -> Iterator[Progress]:
    """Show how far a long task is; the context gives the function that reports it.

    Args:
        label: What is being done, two or three words.
        total: How much there is to do, in the unit in which the task will report.
        silent: Show nothing, because another process does.
    """
    log = None if silent else EventLog.of_this_process()
    with _shown(label, total, silent=silent) as shown:
        yield _Logged(label, total, log, shown) if log else shown


@contextmanager
def _shown(label: str, total: float, *, silent: bool) -> Iterator[Progress]:
    mode = os.environ.get(ENVIRONMENT, "auto")
    if mode == "off" or silent:
        yield _Silent()
    elif mode == "auto" and sys.stderr.isatty():
        with _bar(label, total) as report:
            yield report
    else:
        yield _Lines(label, total)


class _Logged:
    """Writes an event at the start of each interval, and passes on what it is told."""

    def __init__(self, label: str, total: float, log: EventLog, shown: Progress) -> None:
        self._label, self._total, self._log, self._shown = label, total, log, shown
        self._started = time.monotonic()
        self._next = 0.0
        self._first: float | None = None  # what was done already when it began: work that is gone on with

    def __call__(self, done: float, note: str = "") -> None:
        self._shown(done, note)
        elapsed = time.monotonic() - self._started
        self._first = done if self._first is None else self._first
        if elapsed < self._next and done < self._total:
            return
        self._next = elapsed + _LOG_INTERVAL_S
        self._log.write(
            "progress",
            label=self._label,
            done=done,
            total=self._total,
            first=self._first,
            seconds=round(elapsed, 3),
            note=note,
        )


class _Silent:
    def __call__(self, done: float, note: str = "") -> None:
        """Say nothing."""


class _Lines:
    """One line at the start of each interval, so that a log file stays short."""

    def __init__(self, label: str, total: float) -> None:
        self._label, self._total = label, total
        self._started = time.monotonic()
        self._next = 0.0

    def __call__(self, done: float, note: str = "") -> None:
        elapsed = time.monotonic() - self._started
        finished = done >= self._total
        if elapsed < self._next and not finished:
            return
        self._next = float("inf") if finished else elapsed + _LINE_INTERVAL_S
        share = min(1.0, done / self._total) if self._total else 1.0
        left = f", {elapsed / share - elapsed:.0f} s left" if 0 < share < 1 else ""
        print(  # noqa: T201 - the one place that writes progress; stdout stays data
            f"{self._label}: {share:4.0%} after {elapsed:.0f} s{left}{'  ' + note if note else ''}",
            file=sys.stderr,
            flush=True,
        )


@contextmanager
def _bar(label: str, total: float) -> Iterator[Progress]:
    from rich import progress as bars
    from rich.console import Console

    columns: tuple[str | ProgressColumn, ...] = (
        "{task.description}",
        bars.BarColumn(bar_width=24),
        bars.TaskProgressColumn(),
        bars.TimeRemainingColumn(compact=True),
        "{task.fields[note]}",
    )
    with bars.Progress(*columns, console=Console(stderr=True)) as display:
        task = display.add_task(label, total=total, note="")

        def report(done: float, note: str = "") -> None:
            display.update(task, completed=done, note=note)

        yield report
