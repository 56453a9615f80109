"""A hard limit on the memory of another process: by the kernel where it lets us, else by watching and killing.

A limit on address space would be wrong: a mapped file takes address space and no memory. The kernel's own limit is a
group of cgroup v2, which needs the right to make one and the memory controller in it. Elsewhere a thread looks at the
process's resident memory fifty times a second and sleeps in between; it may see an excess that much too late, so
whoever asks compares the peak as well. File-mapped pages count in both.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from ammd.machine import status_bytes

_LOOK_S = 0.02
_ROOT = Path("/sys/fs/cgroup")


class Enforcement(Enum):
    """Who holds the limit."""

    KERNEL = "cgroup"
    WATCHED = "watched"


@dataclass(slots=True, kw_only=True)
class Cap:
    """A limit in force, and what came of it."""

    limit_bytes: int
    enforcement: Enforcement
    was_exceeded: bool = False
    seen_bytes: int = 0  # the most that was seen, by a watched limit alone


@contextlib.contextmanager
def capped(pid: int, limit_bytes: int, *, root: Path = _ROOT) -> Iterator[Cap]:
    """Hold a process, until the block ends, to `limit_bytes`; whichever exceeds them is killed."""
    group = _make_group(pid, limit_bytes, root)
    if group is not None:
        cap = Cap(limit_bytes=limit_bytes, enforcement=Enforcement.KERNEL)
        try:
            yield cap
        finally:
            cap.was_exceeded = _kills(group) > 0
            _remove_group(group, root)
        return
    cap = Cap(limit_bytes=limit_bytes, enforcement=Enforcement.WATCHED)
    ended = threading.Event()
    watcher = threading.Thread(target=_watch, args=(pid, cap, ended), daemon=True)
    watcher.start()
    try:
        yield cap
    finally:
        ended.set()
        watcher.join()


def _watch(pid: int, cap: Cap, ended: threading.Event) -> None:
    while not ended.wait(_LOOK_S):
        resident = status_bytes("VmRSS", pid=pid)
        if resident is None:
            continue
        cap.seen_bytes = max(cap.seen_bytes, resident)
        if resident > cap.limit_bytes:
            cap.was_exceeded = True
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            return


def _make_group(pid: int, limit_bytes: int, root: Path) -> Path | None:
    """Put a process into a limited group; None where that cannot be done.

    Beside our own, since a group that has processes hands no controllers on; beneath it where ours is the root.
    """
    own = _own_group(root)
    if own is None:
        return None
    group = (root if own == root else own.parent) / f"ammd-{pid}"
    try:
        group.mkdir()
    except OSError:
        return None
    try:
        if not (group / "memory.max").exists():  # the controller is not ours to use
            raise OSError
        (group / "memory.max").write_text(str(limit_bytes), encoding="ascii")
        if (group / "memory.swap.max").exists():
            (group / "memory.swap.max").write_text("0", encoding="ascii")
        (group / "cgroup.procs").write_text(str(pid), encoding="ascii")
    except OSError:
        with contextlib.suppress(OSError):
            group.rmdir()
        return None
    return group


def _own_group(root: Path) -> Path | None:
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    path = next((line[3:] for line in lines if line.startswith("0::")), None)
    if path is None or not (root / "cgroup.controllers").exists():
        return None
    return root / path.lstrip("/")


def _kills(group: Path) -> int:
    try:
        events = dict(line.split() for line in (group / "memory.events").read_text("ascii").splitlines())
    except (OSError, ValueError):
        return 0
    return int(events.get("oom_kill", 0))


def _remove_group(group: Path, root: Path) -> None:
    """Remove the group; a process still in it goes back to ours first."""
    own = _own_group(root)
    with contextlib.suppress(OSError):
        for pid in (group / "cgroup.procs").read_text(encoding="ascii").split():
            if own is not None:
                (own / "cgroup.procs").write_text(pid, encoding="ascii")
    with contextlib.suppress(OSError):
        group.rmdir()
