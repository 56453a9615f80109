"""Processes that run one stage: started together, waited for, ended together.

Mostly one. Several are the ranks of one training (`distill.processes`): they find each other through the variables that
torch.distributed and accelerate read, and when one of them ends before its time, all do.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ammd.machine import available_cores
from ammd.progress import ENVIRONMENT as PROGRESS

if TYPE_CHECKING:
    import resource  # which Windows lacks

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_GRACE_S = 5.0  # between asking processes to end and killing them
_NEIGHBOURS_S = 0.3  # in which those that fail together are told apart: one was killed, the others miss it


class ProcessGroups:
    """The groups that run now, of one run: for who looks at their memory, and for another thread that ends them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[int] = set()
        self._is_ended = False

    @property
    def running(self) -> tuple[int, ...]:
        """Ids of the groups, which are those of their first processes."""
        with self._lock:
            return tuple(self._running)

    def add(self, group: int) -> None:
        """Take a group that has just been started; it ends at once if all were to end."""
        with self._lock:
            self._running.add(group)
            is_late = self._is_ended
        if is_late:
            _signal_group(group, signal.SIGTERM)

    def remove(self, group: int) -> None:
        """Let go of a group whose processes are reaped, before its id may be another's."""
        with self._lock:
            self._running.discard(group)

    def end(self, *, kill: bool = False) -> None:
        """Ask all groups to end, and those that are still to come; or kill them."""
        with self._lock:
            self._is_ended = True
            for group in self._running:
                _signal_group(group, signal.SIGKILL if kill else signal.SIGTERM)


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What the processes of a stage may use, and who else is to know of them."""

    cpus: tuple[int, ...] = ()  # ids; empty: whatever this process may use
    quiet: bool = False  # no progress on standard error, where others write as well
    groups: ProcessGroups = field(default_factory=ProcessGroups)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How the processes ended by themselves."""

    returncode: int  # of the one that failed first, a killed one before others; 0 if none failed
    seconds: float
    cpu_seconds: float  # user and system time of all processes and of what they started and waited for
    peak_rss_bytes: int  # of the largest process, the stage's own or one that it started, times their number

    @property
    def was_killed(self) -> bool:
        """Whether a signal ended one of them."""
        return self.returncode < 0


def run_processes(
    command: Sequence[str],
    *,
    count: int,
    held: Sequence[int] = (),
    of_stage: Mapping[str, str],
    share: Share,
) -> Ended:
    """Run `command` in `count` processes of a new process group and sleep until all have ended.

    Args:
        command: What each runs.
        count: How many.
        held: Descriptors that each of them keeps open.
        of_stage: Variables of the stage, which give way to the user's.
        share: What they may use.

    Raises:
        KeyboardInterrupt: Ctrl-C; all processes and all that they started have ended by then.
    """
    started = time.monotonic()
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for variables in _variables(count):
            processes.append(
                subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    pass_fds=held,
                    stdout=2,  # standard output is data, and it is the parent's
                    env=_environment(of_stage, count, share) | variables,
                    # Ctrl-C reaches the parent alone, which then ends the whole group
                    process_group=processes[0].pid if processes else 0,
                )
            )
            share.groups.add(processes[0].pid)
        returncode, cpu_seconds, peak = _wait(processes)
    except BaseException:
        _end_group(processes)
        raise
    finally:
        if processes:
            share.groups.remove(processes[0].pid)
    for process in processes:
        if process.stdin is not None:
            process.stdin.close()
    return Ended(
        returncode=returncode,
        seconds=time.monotonic() - started,
        cpu_seconds=cpu_seconds,
        peak_rss_bytes=peak * len(processes),
    )


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> tuple[int, float, int]:
    """Reap all; once one has failed, end the others. Return the code of the failure, CPU seconds, greatest peak."""
    group = processes[0].pid
    left = {process.pid: process for process in processes}
    peak = returncode = 0
    cpu_seconds = 0.0

    def reap(options: int = 0) -> int | None:
        nonlocal cpu_seconds, peak
        pid, status, usage = os.wait4(-group, options)
        if not pid:
            return None
        code = os.waitstatus_to_exitcode(status)
        left.pop(pid).returncode = code
        cpu_seconds += usage.ru_utime + usage.ru_stime
        peak = max(peak, _peak_bytes(usage))
        return code

    while left:
        code = reap()
        if not code:
            continue
        returncode = code
        if left:
            time.sleep(_NEIGHBOURS_S)
        while left and (other := reap(os.WNOHANG)) is not None:
            returncode = min(returncode, other) if other < 0 else returncode
        _kill_group(group)
        while left:
            reap()
    _kill_group(group)  # what they may have started and left
    return returncode, cpu_seconds, peak


def _variables(count: int) -> list[dict[str, str]]:
    """Return, for each process, what it needs to find the others."""
    if count == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    size = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    return [{**shared, **size, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def _environment(of_stage: Mapping[str, str], count: int, share: Share) -> dict[str, str]:
    threads = max(1, (len(share.cpus) or available_cores()) // count)
    own = {
        **of_stage,
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",  # its threads fight with torch's, and warn when a stage forks
        "TRANSFORMERS_VERBOSITY": "error",
        **os.environ,
        "PYTHONUNBUFFERED": "1",
    }
    if share.cpus:  # what the user has set is meant for a machine without neighbours
        own |= {name: str(threads) for name in _THREAD_VARIABLES if name in own}
    return own | {PROGRESS: "off"} if share.quiet else own


def _end_group(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    if not processes:
        return
    group = processes[0].pid
    _signal_group(group, signal.SIGTERM)
    # A second Ctrl-C does not wait for good manners.
    with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
        deadline = time.monotonic() + _GRACE_S
        for process in processes:
            process.wait(max(0.0, deadline - time.monotonic()))
    _kill_group(group)
    for process in processes:
        process.wait()


def _kill_group(group: int) -> None:
    """Kill what is left running; nothing is in the usual case."""
    _signal_group(group, signal.SIGKILL)


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _peak_bytes(usage: resource.struct_rusage) -> int:
    return usage.ru_maxrss if sys.platform == "darwin" else usage.ru_maxrss * 1024
