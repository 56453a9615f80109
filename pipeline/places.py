"""Where and when the stages of a run are made: at once with the whole machine, or beside other runs of a sweep.

`OpenRun.stage` asks a `Places` for a turn to look for a stage, which is hashing files, and for one to make it. One run
by itself gets both at once. Runs of a sweep, each in a thread, share one `SharedPlaces`: no two make the same stage, a
measurement has the machine to itself, and cores and memory are divided.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ammd.errors import AmmdError
from ammd.machine import available_cores, check_free_disk

from .launch import Outcome, run_in_child
from .process_group import ProcessGroups, Share
from .resources import Need, check_memory, check_room
from .stages import Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a stage is made."""

    run: Callable[..., Outcome] = run_in_child
    share: Share
    made_meanwhile: bool = False  # by another run of the sweep, after this one had looked


class Places(Protocol):
    """Who says where and when."""

    def enter(self) -> ProcessGroups:
        """Return the register of processes of a run that begins."""

    def check_room(self, need: Need, folder: Path) -> None:
        """Check disk and memory for what a run still has to make.

        Raises:
            AmmdError: There is too little.
        """

    def looking(self, key: str) -> AbstractContextManager[None]:
        """Give a turn for work of this process that is no stage, as hashing; the same `key` not twice at once."""

    def working(
        self, stage: Stage, *, key: str, memory_bytes: int, groups: ProcessGroups
    ) -> AbstractContextManager[Place]:
        """Give a turn to make a stage that needs `memory_bytes`."""


class WholeMachine:
    """For one run: everything, at once."""

    def enter(self) -> ProcessGroups:
        """Return a new register."""
        return ProcessGroups()

    def check_room(self, need: Need, folder: Path) -> None:
        """Check against what is free."""
        check_room(need, folder=folder)

    def looking(self, key: str) -> AbstractContextManager[None]:  # noqa: ARG002 - there are no others
        """Wait for nobody."""
        return nullcontext()

    def working(
        self,
        stage: Stage,  # noqa: ARG002 - all stages alike
        *,
        key: str,  # noqa: ARG002
        memory_bytes: int,  # noqa: ARG002
        groups: ProcessGroups,
    ) -> AbstractContextManager[Place]:
        """Wait for nobody."""
        return nullcontext(Place(share=Share(groups=groups)))


@dataclass(eq=False, slots=True, kw_only=True)
class _Turn:
    key: str
    memory_bytes: int = 0
    is_stage: bool = False
    is_alone: bool = False


@dataclass(slots=True)
class _State:
    """Who waits and who works; guarded by the condition."""

    waiting: list[_Turn] = field(default_factory=list)
    working: list[_Turn] = field(default_factory=list)
    made: set[str] = field(default_factory=set)
    failed: dict[str, AmmdError] = field(default_factory=dict)
    groups: list[ProcessGroups] = field(default_factory=list)
    is_ended: bool = False


class SharedPlaces:
    """For the runs of a sweep on this machine.

    Args:
        jobs: Stages that are made at once.
        memory_bytes: That they may take together, by estimate.
    """

    def __init__(self, *, jobs: int, memory_bytes: int) -> None:
        self.jobs = jobs
        self.changed = threading.Condition()
        self._memory_bytes = memory_bytes
        self._free = [*_shares(jobs)]
        self._state = _State()

    @property
    def waiting(self) -> int:
        """How many runs wait for a turn; the caller holds `changed`."""
        return len(self._state.waiting)

    def enter(self) -> ProcessGroups:
        """Return a register whose processes end with the sweep."""
        groups = ProcessGroups()
        with self.changed:
            self._state.groups.append(groups)
        return groups

    def check_room(self, need: Need, folder: Path) -> None:
        """Check the disk, and that the stages fit within the sweep's memory one by one."""
        check_free_disk(folder, need_bytes=need.disk_bytes, purpose="the run")
        self.check_memory(need.memory_bytes)

    def check_memory(self, need_bytes: int) -> None:
        """Check that a stage fits within the sweep's memory by itself.

        Raises:
            DistillError: It does not.
        """
        check_memory(need_bytes, self._memory_bytes, where="are the sweep's (`--memory`)")

    @contextmanager
    def looking(self, key: str) -> Iterator[None]:
        """Wait while the same stage is made, or something is measured."""
        with self._turn(_Turn(key=key)):
            yield

    @contextmanager
    def working(self, stage: Stage, *, key: str, memory_bytes: int, groups: ProcessGroups) -> Iterator[Place]:
        """Wait for a share of the cores and memory, or to be alone; a stage that failed fails for all.

        Raises:
            AmmdError: What the same stage ended with in another run.
            KeyboardInterrupt: The sweep ends.
        """
        turn = _Turn(key=key, memory_bytes=memory_bytes, is_stage=True, is_alone=stage.alone)
        with self._turn(turn):
            cpus = () if stage.alone else self._free.pop()
            share = Share(cpus=cpus, quiet=self.jobs > 1, groups=groups)
            try:
                yield Place(run=self._run, share=share, made_meanwhile=key in self._state.made)
            except AmmdError as exc:
                self._state.failed[key] = exc
                raise
            else:
                self._state.made.add(key)
            finally:
                if not stage.alone:
                    self._free.append(cpus)

    def end(self, *, kill: bool = False) -> None:
        """End all stages that are being made, and every run at its next turn."""
        with self.changed:
            self._state.is_ended = True
            for groups in self._state.groups:
                groups.end(kill=kill)
            self.changed.notify_all()

    def _run(self, stage: Stage, **options: object) -> Outcome:
        """Make a stage; one that was ended with the sweep has not failed."""
        try:
            return run_in_child(stage, **options)  # type: ignore[arg-type]
        except AmmdError:
            if self._state.is_ended:
                raise KeyboardInterrupt from None
            raise

    @contextmanager
    def _turn(self, turn: _Turn) -> Iterator[None]:
        state = self._state
        with self.changed:
            state.waiting.append(turn)
            self.changed.notify_all()
            self.changed.wait_for(lambda: state.is_ended or self._next() is turn)
            state.waiting.remove(turn)
            if state.is_ended:
                raise KeyboardInterrupt
            if turn.key in state.failed:
                self.changed.notify_all()
                raise _again(state.failed[turn.key])
            state.working.append(turn)
            self.changed.notify_all()
        try:
            yield
        finally:
            with self.changed:
                state.working.remove(turn)
                self.changed.notify_all()

    def _next(self) -> _Turn | None:
        """Return the first that waits and may begin; those behind one that may not are not held up."""
        return next((turn for turn in self._state.waiting if self._may_begin(turn)), None)

    def _may_begin(self, turn: _Turn) -> bool:
        state = self._state
        if turn.key in state.failed:
            return True
        if any(other.key == turn.key or other.is_alone for other in state.working):
            return False
        if turn.is_alone:
            return not state.working
        stages = [other for other in state.working if other.is_stage]
        memory = sum(other.memory_bytes for other in stages) + turn.memory_bytes
        return not turn.is_stage or (len(stages) < self.jobs and memory <= self._memory_bytes)


def _shares(jobs: int) -> Iterator[tuple[int, ...]]:
    """Yield the ids of each job's cores: the same number for all, so that no result hangs on which; all for one job."""
    cores = available_cores()
    cpus = sorted(os.sched_getaffinity(0))[:cores] if hasattr(os, "sched_getaffinity") else [*range(cores)]
    each = max(1, len(cpus) // jobs)
    for job in range(jobs):
        start = job * each % len(cpus)
        yield () if jobs == 1 else tuple(cpus[start : start + each])


def _again(error: AmmdError) -> AmmdError:
    return type(error)(str(error), hint=error.hint, **error.facts)
