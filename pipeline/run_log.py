"""The log of a run, `log.jsonl` in its folder: what its sessions do, for `ammd watch` and for the report.

`ammd run` writes when it begins, when a stage is found, begins or is done, and how it ends; a stage's process writes
its progress. Every two seconds comes the memory of what it has started, which is also the sign that it lives. That
costs 1 ms of processor time a sample, 0.06 % of one core. A run that is gone on with adds a session to the same file.
"""

from __future__ import annotations

import contextlib
import os
import platform
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ammd.errors import AmmdError
from ammd.event_log import Event, EventLog, EventReader

from .end_signals import exit_code_of
from .process_group import ProcessGroups

LOG_NAME = "log.jsonl"
LOG_SCHEMA = "ammd.log/1"
SAMPLE_S = 2.0
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_PROCESS_IDS = Path("/proc/self/ns/pid")


@contextmanager
def run_log(folder: Path, *, run: str, stages: Iterable[str], groups: ProcessGroups) -> Iterator[EventLog]:
    """Write the beginning and the end of a session around what is done in it, and its memory meanwhile.

    Args:
        folder: Of the run; the caller holds its lock.
        run: `name/id`.
        stages: Their names, in order.
        groups: The processes whose memory it is.
    """
    log = EventLog(folder / LOG_NAME)
    log.end_line()
    log.write("run_started", schema=LOG_SCHEMA, run=run, stages=list(stages), process=describe_process())
    try:
        with sampled_memory(log, groups):
            yield log
    except BaseException as exc:
        log.write("run_ended", **_failure(exc))
        raise
    log.write("run_ended", exit_code=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageMemory:
    """Memory of the processes of a stage while it was made, all together."""

    stage: str
    seconds: tuple[float, ...]  # since the stage began
    rss_bytes: tuple[int, ...]


def stage_memory(folder: Path) -> list[StageMemory]:
    """Return the samples of each stage of a run that the log has seen from beginning to end, in the order made."""
    open_stage: Event | None = None
    points: list[tuple[float, int]] = []
    found: dict[str, StageMemory] = {}
    for event in EventReader(folder / LOG_NAME).read():
        if event["event"] == "stage_started":
            open_stage, points = event, []
        elif event["event"] == "memory" and open_stage:
            points.append((event["time"] - open_stage["time"], event["rss_bytes"]))
        elif event["event"] == "stage_finished" and open_stage:
            name = open_stage["stage"]
            found.pop(name, None)  # made anew: it stands where the last time was
            if points:
                seconds, rss_bytes = zip(*points, strict=True)
                found[name] = StageMemory(stage=name, seconds=seconds, rss_bytes=rss_bytes)
            open_stage = None
    return list(found.values())


def describe_process() -> dict[str, Any]:
    """Return what tells this process from all others, on this machine and elsewhere."""
    import psutil

    return {
        "pid": os.getpid(),
        "began": psutil.Process().create_time(),
        "host": platform.node(),
        "ids_of": _ids_of(),
    }


def is_gone(process: Mapping[str, Any]) -> bool | None:
    """Tell whether a process that `describe_process` described has ended; None if it is not of this machine."""
    import psutil

    if process["host"] != platform.node() or process["ids_of"] != _ids_of():
        return None
    try:
        found = psutil.Process(process["pid"])
        # A clock that is set moves the time at which a process began by as much.
        same = abs(found.create_time() - process["began"]) < 2
        return not same or found.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _ids_of() -> str:
    """Return a name for what process ids count within: a boot of a machine, or a container on it."""
    try:
        return f"{_BOOT_ID.read_text(encoding='ascii').strip()} {_PROCESS_IDS.readlink()}"
    except OSError:
        return ""


@contextmanager
def sampled_memory(log: EventLog, groups: ProcessGroups) -> Iterator[None]:
    """Write the memory of a run's processes every two seconds while something is done."""
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(SAMPLE_S):
            if running := groups.running:
                log.write("memory", rss_bytes=_rss_of(running))
            else:  # between stages, or they run on another machine
                log.write("alive")

    thread = threading.Thread(target=sample, name="memory-samples", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _rss_of(groups: Sequence[int]) -> int:
    """Return the resident memory of some process groups and of all that they have started, in bytes."""
    import psutil

    total = 0
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error, ProcessLookupError):  # it has just ended
            if os.getpgid(child.pid) in groups:
                total += child.memory_info().rss
    return total


def _failure(exc: BaseException) -> dict[str, Any]:
    if isinstance(exc, AmmdError):
        return {"exit_code": exc.exit_code, "error": str(exc), "hint": exc.hint}
    if isinstance(exc, KeyboardInterrupt):
        return {"exit_code": exit_code_of(exc), "error": "interrupted", "hint": ""}
    return {"exit_code": 1, "error": f"{type(exc).__name__}: {exc}", "hint": ""}
