"""A lock on a folder that ends with all the processes that work in it, however they end.

The system holds it for an open file (`flock`), so no process has to let go: when the last one that has the file open is
gone, it is free. The processes that a holder starts can be given that file, too. Then a new run cannot begin beside
those of a killed one, which live some milliseconds longer. No library's lock can be handed on like that.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .durable import make_folder, writing_to
from .errors import ArtifactError

LOCK_NAME = ".lock"
_DEATH_S = 15.0  # in which the processes of a killed holder have ended
_POLL_S = 0.05
_FACTS_BYTES = 1000

log = logging.getLogger("ammd")


@contextmanager
def folder_lock(folder: Path, *, wait: bool) -> Iterator[int]:
    """Hold `folder`, made if it is not there, and give the descriptor that other processes may hold it by.

    Args:
        folder: What is worked in. The file for it stays there.
        wait: Wait for another process that holds it; else refuse.

    Raises:
        ArtifactError: Another process holds it, it cannot be written, or its file system has no locks.
    """
    with writing_to(folder):
        descriptor = _acquire(folder, wait=wait)
    try:
        with contextlib.suppress(OSError):  # on a full disk it stays unnamed
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
        yield descriptor
    finally:
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
        os.close(descriptor)


def is_locked(folder: Path) -> bool:
    """Tell whether a process works in a folder now."""
    try:
        descriptor = os.open(folder / LOCK_NAME, os.O_RDWR)
    except OSError:
        return False
    try:
        return not _try(descriptor, folder)
    except ArtifactError:
        return False  # nobody can hold what has no locks
    finally:
        os.close(descriptor)


def _acquire(folder: Path, *, wait: bool) -> int:
    """Return the descriptor of the locked file, once it is the one that lies in the folder."""
    started, has_said = time.monotonic(), False
    while True:
        make_folder(folder)
        descriptor = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if _try(descriptor, folder):
                if _is_in_place(descriptor, folder):  # or the folder was removed meanwhile
                    return descriptor
            else:
                holder = _read_holder(descriptor)
                # One who only asks (`is_locked`) holds it for a moment, under nobody's name.
                is_dying = not _is_alive(holder) and time.monotonic() - started < _DEATH_S
                if not (wait or is_dying):
                    raise _refusal(folder, holder)
                if not (has_said or is_dying):
                    log.warning("another `ammd`%s is working in `%s`; waiting for it", _named(holder), folder)
                    has_said = True
                time.sleep(_POLL_S)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _try(descriptor: int, folder: Path) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as exc:
        if exc.errno in (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK):
            raise ArtifactError(
                f"the file system of `{folder}` has no locks, which keep two runs apart",
                hint="name a folder on another one with `--runs-dir`, or have it mounted with locks",
                path=str(folder),
            ) from exc
        raise
    return True


def _is_in_place(descriptor: int, folder: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), (folder / LOCK_NAME).stat())
    except FileNotFoundError:
        return False


def _read_holder(descriptor: int) -> dict[str, Any]:
    """Return what the holder says of itself; nothing while it has not."""
    try:
        document = json.loads(os.pread(descriptor, _FACTS_BYTES, 0))
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _is_alive(holder: dict[str, Any]) -> bool:
    """Tell whether the holder lives, as far as this machine can know."""
    if holder.get("host") != socket.gethostname() or not isinstance(holder.get("pid"), int):
        return bool(holder)
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def _named(holder: dict[str, Any]) -> str:
    if not holder:
        return ""
    where = "" if holder.get("host") == socket.gethostname() else f" on {holder.get('host')}"
    return f" (process {holder.get('pid')}{where})"


def _refusal(folder: Path, holder: dict[str, Any]) -> ArtifactError:
    return ArtifactError(
        f"another `ammd`{_named(holder)} is working in `{folder}`",
        hint="wait until it ends, or give this run another name with `--set name=...`",
        path=str(folder),
    )
