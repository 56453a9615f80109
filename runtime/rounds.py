"""The processes of every cell (a model at a thread count), in rounds: one of each, then the next of each.

A machine that slows down so does it for all. A cell takes part until it has its processes, and then as long as its
intervals are too wide and `max_processes` allows. A process that others disturbed (`validity.OUTSIDE`) is measured
again in a later round; in the end the most disturbed ones, as many as were measured again, do not count, whatever
their speed. They are kept beside those that do.

A process that is killed or cannot run its model ends its cell and no other: that is a result too.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ammd.errors import EngineError
from ammd.progress import progress

from .artifact_ref import ArtifactRef
from .noise import load_1min, oom_kills
from .settings import BenchSettings
from .stopping import StoppedBy, half_width
from .validity import Judgement, judge, outside, process_spread, steadiness, together

Measure = Callable[["Cell"], Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What one row is about."""

    artifact: ArtifactRef
    engine: str
    threads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """What one process measured, and what it is worth."""

    measured: Mapping[str, Any]  # what the child tells
    noise: Mapping[str, Any]  # from the child, and what the parent saw

    @property
    def disturbance(self) -> Judgement:
        """What speaks against it from outside."""
        return judge(outside(self.noise))

    @property
    def judgement(self) -> Judgement:
        """All that speaks against it."""
        return together([self.disturbance, *(judge(steadiness(times)) for times in _deciding(self))])


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """How a cell's process ended that brought no result."""

    ended: str  # in one line
    message: str  # with the last lines of its log
    hint: str
    exit_status: (
        int | None
    )  # None where the process itself said what is wrong; negative: killed by that signal
    signal: str | None
    out_of_memory: bool | None  # the kernel says so; None where it does not tell


@dataclass(slots=True, kw_only=True)
class Course:
    """How far a cell is."""

    processes: list[Process] = field(default_factory=list)
    failure: Failure | None = None
    stopped_by: StoppedBy | None = None

    def counted(self, settings: BenchSettings) -> tuple[Process, ...]:
        """Return the processes that make up the row."""
        left_out = self._left_out(settings)
        return tuple(one for index, one in enumerate(self.processes) if index not in left_out)

    def replaced(self, settings: BenchSettings) -> tuple[Process, ...]:
        """Return those that were measured again."""
        return tuple(self.processes[index] for index in sorted(self._left_out(settings)))

    def judgement(self, settings: BenchSettings) -> Judgement:
        """Return what the row is worth: as much as its worst process, and the processes' likeness."""
        counted = self.counted(settings)
        by_phase = zip(*map(_deciding, counted), strict=True)
        spreads = (judge(process_spread(phase)) for phase in by_phase)
        return together([*(one.judgement for one in counted), *spreads])

    def _left_out(self, settings: BenchSettings) -> set[int]:
        disturbed = [index for index, one in enumerate(self.processes) if one.disturbance.over]
        disturbed.sort(key=lambda index: -sum(self.processes[index].disturbance.over.values()))
        spare = len(self.processes) - settings.processes
        return set(disturbed[: max(0, min(settings.retries, spare))])


def measure_cells(cells: Sequence[Cell], settings: BenchSettings, *, measure: Measure) -> list[Course]:
    """Measure all cells and return how each went, in their order.

    Args:
        cells: What to measure.
        settings: How many processes.
        measure: Measures a cell once in a fresh process.
    """
    courses = [Course() for _ in cells]
    done, total = 0, len(cells) * settings.processes
    with progress("bench", total) as report:
        while open_cells := [
            pair for pair in zip(cells, courses, strict=True) if not _is_over(pair[1], settings)
        ]:
            for cell, course in open_cells:
                report(min(done, total - 1), f"{cell.artifact.name}, {cell.threads} threads")
                _measure_once(cell, course, measure)
                done += 1
        report(total)
    return courses


def _is_over(course: Course, settings: BenchSettings) -> bool:
    """Tell whether a cell needs no more processes, and note what ended it."""
    if course.failure or course.stopped_by:
        return True
    counted = course.counted(settings)
    disturbed = sum(bool(one.disturbance.over) for one in course.processes)
    if len(course.processes) < settings.processes + min(settings.retries, disturbed):
        return False
    by_phase = zip(*map(_deciding, counted), strict=True)
    if all(half_width(phase) <= settings.target_interval for phase in by_phase):
        course.stopped_by = StoppedBy.TARGET
    elif len(counted) >= settings.max_processes:
        course.stopped_by = StoppedBy.MAX_PROCESSES
    return course.stopped_by is not None


def _measure_once(cell: Cell, course: Course, measure: Measure) -> None:
    load, kills = load_1min(), oom_kills()
    started, own = time.perf_counter(), time.process_time()
    try:
        measured = measure(cell)
    except EngineError as error:
        course.failure = _failure(error, kills_before=kills)
        return
    harness = (time.process_time() - own) / (time.perf_counter() - started)
    noise = {**measured["noise"], "load_1min": load, "harness_cpu_share": harness}
    course.processes.append(Process(measured=measured, noise=noise))


def _failure(error: EngineError, *, kills_before: int | None) -> Failure:
    found, kills = error.facts.get("status"), oom_kills()
    status = found if isinstance(found, int) else None
    name = signal.Signals(-status).name if status is not None and status < 0 else None
    is_known = kills is not None and kills_before is not None
    out_of_memory = name == "SIGKILL" and kills != kills_before if is_known else None
    ended = str(error).splitlines()[0].removesuffix("; its last lines:")
    return Failure(
        ended=f"{ended}, for want of memory" if out_of_memory else ended,
        message=str(error),
        hint=error.hint,
        exit_status=status,
        signal=name,
        out_of_memory=out_of_memory,
    )


def _deciding(process: Process) -> tuple[Sequence[float], Sequence[float]]:
    """Return the seconds of each pass's prefill and decoding."""
    return process.measured["prefill_s"], [sum(one) for one in process.measured["token_s"]]
