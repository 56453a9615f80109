"""A sweep in progress: each combination is a run of its own, in a thread of its own, and `run_recipe` makes it.

The threads sleep: what computes are the stages' processes, for which `places.py` gives turns. Runs begin in the plan's
order, the next one when fewer than `jobs` of those that have begun are at work. A run that fails ends by itself.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from ammd.byte_size import parse_size
from ammd.errors import AmmdError, RecipeError
from ammd.machine import available_cpus, available_memory_bytes

from .open_run import run_folder
from .places import Host, SharedPlaces, divide
from .plan import counts_text, plan_sweep
from .run import run_recipe
from .run_checks import check_run
from .stages import STAGES, Stage
from .sweep import Point, Sweep
from .sweep_document import RunEnd, RunState, parse_sort, sweep_document

log = logging.getLogger("ammd.pipeline")
_MOST_OPEN = 32  # runs that have begun, most of them waiting: each holds files and threads
_GRACE_S = 5.0  # between asking stages to end and killing them


def run_sweep(
    sweep: Sweep,
    *,
    runs_dir: Path,
    until: str = "report",
    jobs: int | None = None,
    memory: str | None = None,
    fail_fast: bool = False,
    sort: str | None = None,
    ray: str | None = None,
    stages: Mapping[str, Stage] = STAGES,
) -> dict[str, Any]:
    """Make every run of a sweep and return their key numbers in one document.

    Args:
        sweep: What to run.
        runs_dir: Folder of all runs.
        until: As for `run_recipe`.
        jobs: Stages that are made at once on a machine, dividing its cores; None makes one after the other.
        memory: What they may take together there, as `12 GB`; None takes what is free.
        fail_fast: End all runs once one has failed.
        sort: `METRIC` of the student or `MODEL.METRIC`, the best run first; None keeps the plan's order.
        ray: Address of a Ray cluster that makes the stages, `auto` or `HOST:PORT`; None makes them here.
        stages: Where each stage's code is.

    Raises:
        RecipeError: `memory` is no size, or there is no metric of that name.
        DistillError: One stage by itself needs more memory.
        EngineError: The cluster cannot be used.
        KeyboardInterrupt: Ctrl-C; all stages have ended by then, and what was made is kept.
    """
    order = parse_sort(sort) if sort else None
    runs_dir = runs_dir.resolve()  # other machines have another current folder
    plan = plan_sweep(sweep, runs_dir=runs_dir, until=until, stages=stages)
    hosts = _hosts(ray, jobs=jobs or 1, memory_bytes=_memory_bytes(memory), runs_dir=runs_dir)
    with hosts as found, _lines_named_by_run():
        places = SharedPlaces(found)
        places.check_memory(max(row["memory_bytes"] for row in plan["runs"]))
        log.info("sweep of %d runs: %s", len(sweep.points), counts_text(plan))
        began = time.monotonic()
        threads = [
            _Job(point, places, runs_dir=runs_dir, until=until, stages=stages) for point in sweep.points
        ]
        try:
            _begin_all(threads, places, fail_fast=fail_fast)
        except BaseException:
            _end_all(threads, places)
            raise
    return sweep_document(
        sweep,
        [thread.end for thread in threads],
        runs_dir=runs_dir,
        seconds=time.monotonic() - began,
        order=order,
    )


def _hosts(
    ray: str | None, *, jobs: int, memory_bytes: int | None, runs_dir: Path
) -> AbstractContextManager[Sequence[Host]]:
    """Return the machines that make the stages: this one, or the nodes of a cluster."""
    if ray is None:
        free = memory_bytes or available_memory_bytes()
        return nullcontext([Host(shares=divide(available_cpus(), jobs), memory_bytes=free)])
    from .ray_hosts import ray_hosts

    return ray_hosts(ray, jobs=jobs, memory_bytes=memory_bytes, runs_dir=runs_dir)


def _memory_bytes(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return parse_size(text)
    except ValueError as exc:
        raise RecipeError(f"`--memory` = `{text}`: {exc}") from exc


class _Job(threading.Thread):
    """One run of the sweep; `end` says how it is and what came of it."""

    def __init__(
        self, point: Point, places: SharedPlaces, *, runs_dir: Path, until: str, stages: Mapping[str, Stage]
    ) -> None:
        folder = run_folder(point.recipe, runs_dir=runs_dir)
        super().__init__(name=f"{point.recipe.name}/{folder.name}")
        self.end = RunEnd(run=self.name, folder=folder, choices=point.choices)
        self._recipe, self._places = point.recipe, places
        self._options: dict[str, Any] = {
            "runs_dir": runs_dir,
            "until": until,
            "stages": stages,
            "wait": False,
        }

    def run(self) -> None:
        """Make the run; whatever happens, the sweep is told that it is over."""
        end = self.end
        state = RunState.FAILED
        try:
            end.summary = run_recipe(self._recipe, places=self._places, **self._options)
            check_run(end.summary)
            end.exit_code, state = 0, RunState.FINISHED
        except KeyboardInterrupt:
            state = RunState.ENDED
        except AmmdError as exc:
            end.exit_code, end.error, end.hint = exc.exit_code, str(exc), exc.hint
        except Exception as exc:
            log.debug("traceback", exc_info=True)
            end.exit_code, end.error = 1, f"{type(exc).__name__}: {exc}"
            end.hint = "this is a defect; `--verbose` shows where"
        if end.error:
            log.warning("failed: %s", end.error)
        with self._places.changed:
            end.state = state
            self._places.changed.notify_all()


def _begin_all(jobs: Sequence[_Job], places: SharedPlaces, *, fail_fast: bool) -> None:
    """Begin the runs one after the other and wait until all are over."""
    left, begun = list(jobs), list[_Job]()
    with places.changed:
        while left or any(job.end.state is RunState.RUNNING for job in begun):
            running = sum(job.end.state is RunState.RUNNING for job in begun)
            if fail_fast and any(job.end.state is RunState.FAILED for job in begun):
                break
            if left and running < _MOST_OPEN and running - places.waiting < places.jobs:
                begun.append(left.pop(0))
                begun[-1].end.state = RunState.RUNNING
                begun[-1].start()
                log.info("sweep: run %d of %d begins", len(begun), len(jobs))
            else:
                places.changed.wait()
    if any(job.end.state is RunState.RUNNING for job in begun):
        _end_all(jobs, places)
    for job in begun:
        job.join()


def _end_all(jobs: Sequence[_Job], places: SharedPlaces) -> None:
    """End every run that has begun and wait for it; a second Ctrl-C kills at once."""
    begun = [job for job in jobs if job.ident is not None]
    places.end()
    try:
        deadline = time.monotonic() + _GRACE_S
        for job in begun:
            job.join(max(0.0, deadline - time.monotonic()))
    finally:
        places.end(kill=True)
        for job in begun:
            job.join()


@contextmanager
def _lines_named_by_run() -> Iterator[None]:
    """Begin each line that a run logs with its name."""

    def name_run(record: logging.LogRecord) -> bool:
        if isinstance(threading.current_thread(), _Job):
            record.msg = f"{record.threadName}: {record.msg}"
        return True

    log.addFilter(name_run)
    try:
        yield
    finally:
        log.removeFilter(name_run)
