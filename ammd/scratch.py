"""Temporary folders that a killed process does not leave for good.

A process that is killed cannot remove its folder, and the system's own folder for such things may live as long as the
machine runs. Each of ours is locked by the process that made it; the lock ends with the process, however that ends, and
the next one that makes a folder removes those that nobody holds any more.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PREFIX = "ammd-scratch-"
_LOCK, _FILES = ".lock", "files"
_YOUNGEST_SECONDS = 60  # one that is younger may be about to be locked


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Give an empty folder that is gone afterwards."""
    from filelock import FileLock

    _sweep()
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    try:
        with FileLock(folder / _LOCK):
            files = folder / _FILES
            files.mkdir()
            yield files
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sweep() -> None:
    """Remove the folders of this user that a process made which has ended."""
    from filelock import FileLock, Timeout

    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        if not _may_be_left(folder):
            continue
        try:
            with FileLock(folder / _LOCK, timeout=0):
                shutil.rmtree(folder, ignore_errors=True)
        except (Timeout, OSError):
            continue  # in use, or another process removes it as well


def _may_be_left(folder: Path) -> bool:
    try:
        facts = folder.lstat()
    except OSError:
        return False
    is_ours = not hasattr(os, "getuid") or facts.st_uid == os.getuid()
    is_old = time.time() - facts.st_mtime > _YOUNGEST_SECONDS
    return is_ours and is_old and folder.is_dir() and not folder.is_symlink() and (folder / _LOCK).is_file()
