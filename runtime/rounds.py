"""The processes of every cell (a model at a thread count and depth), in rounds: one of each, then the next of each.

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
from dataclasses import dataclass
from typing import Any, cast

from ammd.errors import EngineError
from ammd.progress import progress

from .artifact_ref import ArtifactRef
from .host import Host, Surroundings
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
    prompt_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """What one process measured, and what it is worth."""

    measured: Mapping[str, Any]  # what the child tells
    noise: Mapping[str, Any]  # from the child, and what the parent saw
    states: Mapping[str, Any] | None = None  # of a device, before and after

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
    exit_status: int | None  # negative: killed by that signal; None: the process itself said what is wrong
    signal: str | None
    out_of_memory: bool | None  # the kernel says so; None where it does not tell


class Course:
    """How far a cell is."""

    def __init__(self, settings: BenchSettings) -> None:
        """Begin without any process."""
        self._settings = settings
        self.processes: list[Process] = []  # in the order in which they were measured
        self.failure: Failure | None = None
        self.stopped_by: StoppedBy | None = None

    @property
    def counted(self) -> tuple[Process, ...]:
        """The processes that make up the row."""
        left_out = self._left_out()
        return tuple(one for index, one in enumerate(self.processes) if index not in left_out)

    @property
    def replaced(self) -> tuple[Process, ...]:
        """Those that were measured again."""
        return tuple(self.processes[index] for index in sorted(self._left_out()))

    @property
    def judgement(self) -> Judgement:
        """What the row is worth: as much as its worst process, and the processes' likeness."""
        counted = self.counted
        spreads = (judge(process_spread(phase)) for phase in _by_phase(counted))
        return together([*(one.judgement for one in counted), *spreads])

    def note_end(self) -> bool:
        """Return whether the cell needs no more processes, and keep why."""
        if self.failure or self.stopped_by:
            return True
        settings, counted = self._settings, self.counted
        disturbed = sum(bool(one.disturbance.over) for one in self.processes)
        if len(self.processes) < settings.processes + min(settings.retries, disturbed):
            return False
        if all(half_width(phase) <= settings.target_interval for phase in _by_phase(counted)):
            self.stopped_by = StoppedBy.TARGET
        elif len(counted) >= settings.max_processes:
            self.stopped_by = StoppedBy.MAX_PROCESSES
        return self.stopped_by is not None

    def _left_out(self) -> set[int]:
        disturbed = [index for index, one in enumerate(self.processes) if one.disturbance.over]
        disturbed.sort(key=lambda index: -sum(self.processes[index].disturbance.over.values()))
        spare = len(self.processes) - self._settings.processes
        return set(disturbed[: max(0, min(self._settings.retries, spare))])


def measure_cells(
    cells: Sequence[Cell], settings: BenchSettings, *, measure: Measure, host: Host
) -> list[Course]:
    """Measure all cells and return how each went, in their order.

    Args:
        cells: What to measure.
        settings: How many processes.
        measure: Measures a cell once in a fresh process.
        host: Where that is.

    Raises:
        EngineError: The host cannot be reached, or stays too warm.
    """
    courses = [Course(settings) for _ in cells]
    done, total = 0, len(cells) * settings.processes
    with progress("bench", total) as report:
        while going_on := [pair for pair in zip(cells, courses, strict=True) if not pair[1].note_end()]:
            for cell, course in going_on:
                report(
                    min(done, total - 1),
                    f"{cell.artifact.name}, {cell.threads} threads, {cell.prompt_tokens} tokens",
                )
                _measure_once(cell, course, measure, host)
                done += 1
        report(total)
    return courses


def _measure_once(cell: Cell, course: Course, measure: Measure, host: Host) -> None:
    before = host.get_ready()
    started, own = time.perf_counter(), time.process_time()
    try:
        measured = measure(cell)
    except EngineError as error:
        # Where it is the connection that failed, looking fails too, and ends everything.
        course.failure = _failure(error, before, host.look())
        return
    harness = (time.process_time() - own) / (time.perf_counter() - started)
    noise = {**measured["noise"], "load_1min": before.load_1min, "harness_cpu_share": harness}
    states = {"before": before.state, "after": host.look().state} if before.state is not None else None
    course.processes.append(Process(measured=measured, noise=noise, states=states))


def _failure(error: EngineError, before: Surroundings, after: Surroundings) -> Failure:
    found = error.facts.get("status")
    status = found if isinstance(found, int) else None
    name = signal.Signals(-status).name if status is not None and status < 0 else None
    is_known = before.oom_kills is not None and after.oom_kills is not None
    out_of_memory = name == "SIGKILL" and before.oom_kills != after.oom_kills if is_known else None
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
    return process.measured["prefill_s"], decode_seconds(process.measured)


def decode_seconds(measured: Mapping[str, Any]) -> Sequence[float]:
    """Return the seconds of each pass's decoding; `token_s` is None where single tokens were not timed."""
    if measured["token_s"] is None:
        return cast(Sequence[float], measured["decode_s"])
    return [sum(one) for one in measured["token_s"]]


def _by_phase(processes: Sequence[Process]) -> tuple[tuple[Sequence[float], ...], ...]:
    """Return the same of several processes, by phase."""
    return tuple(zip(*map(_deciding, processes), strict=True))
