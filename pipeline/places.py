"""Where and when the stages of a run are made: at once with the whole machine, or beside other runs of a sweep.

`OpenRun.stage` asks a `Places` for a turn to look for a stage, which is hashing files, and for one to make it. One run
by itself gets both at once. Runs of a sweep, each in a thread, share one `SharedPlaces`: no two make the same stage, a
measurement has its machine to itself, and each machine's cores and memory are divided.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from ammd.errors import AmmdError, EngineError
from ammd.machine import check_free_disk

from .launch import Outcome, run_in_child
from .process_group import ProcessGroups, Share
from .resources import Need, check_memory, check_room
from .stages import Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a stage is made."""

    run: Callable[..., Outcome]  # as `run_in_child`, with a share of its machine
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
        return nullcontext(Place(run=partial(run_in_child, share=Share(groups=groups))))


class HostLostError(EngineError):
    """A machine of the sweep is gone: the owner of the machine acts, the sweep goes on without it."""


@dataclass(eq=False, slots=True, kw_only=True)
class _Turn:
    key: str
    memory_bytes: int = 0
    is_stage: bool = False
    is_alone: bool = False


@dataclass(eq=False, slots=True, kw_only=True)
class Host:
    """A machine on which stages of a sweep are made."""

    shares: list[tuple[int, ...]]  # ids of cores that are free, a share for each stage at once
    memory_bytes: int
    run: Callable[..., Outcome] = run_in_child
    end: Callable[[], object] = lambda: None  # ends what runs there beside the process groups of the runs
    is_here: bool = True  # this process computes on it as well
    is_lost: bool = False
    working: list[_Turn] = field(default_factory=list)

    def may_begin(self, turn: _Turn) -> bool:
        """Tell whether a turn fits beside those that are at work."""
        if self.is_lost or any(other.is_alone for other in self.working):
            return False
        if turn.is_alone:
            return not self.working
        memory = sum(other.memory_bytes for other in self.working) + turn.memory_bytes
        return not turn.is_stage or (bool(self.shares) and memory <= self.memory_bytes)


class SharedPlaces:
    """For the runs of a sweep.

    Attributes:
        jobs: Stages that can be made at once.
        changed: Notified whenever a turn begins or ends.
    """

    def __init__(self, hosts: Sequence[Host]) -> None:
        self.jobs = sum(len(host.shares) for host in hosts)
        self.changed = threading.Condition()
        self._hosts = hosts
        self._waiting: list[_Turn] = []
        self._busy: set[str] = set()  # keys
        self._made: set[str] = set()
        self._failed: dict[str, AmmdError] = {}
        self._groups: list[ProcessGroups] = []
        self._is_ended = False

    @property
    def waiting(self) -> int:
        """How many runs wait for a turn; the caller holds `changed`."""
        return len(self._waiting)

    def enter(self) -> ProcessGroups:
        """Return a register whose processes end with the sweep."""
        groups = ProcessGroups()
        with self.changed:
            self._groups.append(groups)
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
        largest = max(host.memory_bytes for host in self._hosts)
        check_memory(need_bytes, largest, where="are the sweep's (`--memory`)")

    @contextmanager
    def looking(self, key: str) -> Iterator[None]:
        """Wait while the same stage is made, or something is measured here."""
        hosts = [host for host in self._hosts if host.is_here] or [Host(shares=[], memory_bytes=0)]
        with self._turn(_Turn(key=key), hosts):
            yield

    @contextmanager
    def working(self, stage: Stage, *, key: str, memory_bytes: int, groups: ProcessGroups) -> Iterator[Place]:
        """Wait for a share of the cores and memory, or to be alone; a stage that failed fails for all.

        Raises:
            AmmdError: What the same stage ended with in another run.
            KeyboardInterrupt: The sweep ends.
        """
        turn = _Turn(key=key, memory_bytes=memory_bytes, is_stage=True, is_alone=stage.alone)
        with self._turn(turn, self._hosts) as host:
            cpus = () if stage.alone else host.shares.pop()
            share = Share(cpus=cpus, quiet=self.jobs > 1, groups=groups)
            try:
                yield Place(run=partial(self._run, host=host, share=share), made_meanwhile=key in self._made)
                self._made.add(key)
            except AmmdError as exc:
                self._failed[key] = exc
                raise
            finally:
                if not stage.alone:
                    host.shares.append(cpus)

    def end(self, *, kill: bool = False) -> None:
        """End all stages that are being made, and every run at its next turn."""
        with self.changed:
            self._is_ended = True
            for groups in self._groups:
                groups.end(kill=kill)
            for host in self._hosts:
                host.end()
            self.changed.notify_all()

    def _run(self, stage: Stage, *, host: Host, share: Share, **options: object) -> Outcome:
        """Make a stage; one that was ended with the sweep has not failed."""
        try:
            return host.run(stage, share=share, **options)
        except HostLostError as exc:
            host.is_lost = True
            failure: AmmdError = exc
        except AmmdError as exc:
            failure = exc
        if self._is_ended:
            raise KeyboardInterrupt
        raise failure

    @contextmanager
    def _turn(self, turn: _Turn, hosts: Sequence[Host]) -> Iterator[Host]:
        """Wait until a host has room; those who wait behind one that nothing has room for are not held up."""
        found: list[Host] = []

        def has_come() -> bool:
            found[:] = [host for host in hosts if host.may_begin(turn)] if turn.key not in self._busy else []
            is_hopeless = turn.key in self._failed or all(host.is_lost for host in hosts)
            return bool(found) or is_hopeless or self._is_ended

        with self.changed:
            self._waiting.append(turn)
            self.changed.notify_all()
            try:
                self.changed.wait_for(has_come)
            finally:
                self._waiting.remove(turn)
            if self._is_ended:
                raise KeyboardInterrupt
            if turn.key in self._failed:
                raise _again(self._failed[turn.key])
            if not found:
                raise EngineError("no node of the sweep is left", hint="`ammd run` again goes on with it")
            host = found[0]
            host.working.append(turn)
            self._busy.add(turn.key)
        try:
            yield host
        finally:
            with self.changed:
                host.working.remove(turn)
                self._busy.discard(turn.key)
                self.changed.notify_all()


def divide(cpus: Sequence[int], jobs: int) -> list[tuple[int, ...]]:
    """Return each job's cores, the same number for all, so that no result hangs on which; `()` is all, for one job."""
    if jobs == 1:
        return [()]
    each = max(1, len(cpus) // jobs)
    starts = [job * each % len(cpus) for job in range(jobs)]
    return [tuple(cpus[start : start + each]) for start in starts]


def _again(error: AmmdError) -> AmmdError:
    return type(error)(str(error), hint=error.hint, **error.facts)
