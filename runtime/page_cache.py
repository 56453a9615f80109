"""How much of a model's files lies in the page cache, and how to drop them from it.

Only so can a first start be measured: a file that was read a minute ago is still in memory, and opening it again says
nothing about a device that was just switched on. The kernel drops what nobody has mapped and what is on the disk; it
need not do it, so the share that is left is asked for afterwards and not assumed. A virtual machine's host may hold the
file all the same.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Mapping
from pathlib import Path

_SECTOR_BYTES = 512  # getrusage's blocks


def model_files(path: Path) -> tuple[Path, ...]:
    """Return a model's files: itself, or all that its folder holds."""
    return tuple(sorted(file for file in path.rglob("*") if file.is_file())) if path.is_dir() else (path,)


def drop_from_cache(path: Path) -> bool:
    """Ask the kernel to drop a model's files; False where it cannot be asked.

    Raises:
        OSError: A file cannot be read.
    """
    if not hasattr(os, "posix_fadvise"):
        return False
    for file in model_files(path):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # what is not written yet cannot be dropped
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)
    return True


def drop(request: Mapping[str, str]) -> dict[str, bool]:
    """Ask the kernel to drop the model at `path`. Runs in a child on a device.

    Returns:
        `is_asked`: False where it cannot be asked, or a file cannot be read.
    """
    try:
        return {"is_asked": drop_from_cache(Path(request["path"]))}
    except OSError:  # its engine could read it, or will say why not
        return {"is_asked": False}


def resident_share(path: Path) -> float | None:
    """Return the share of a model's pages that is in the page cache; None where the system does not tell.

    Linux tells only who may write a file or owns it, and calls the pages of others resident.

    Raises:
        OSError: A file cannot be read.
    """
    try:
        mincore = ctypes.CDLL(None, use_errno=True).mincore
    except (OSError, AttributeError, TypeError):
        return None
    mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p)
    resident = total = 0
    for file in model_files(path):
        size = file.stat().st_size
        if not size:
            continue
        flags = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
        with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY) as pages:
            first = ctypes.c_char.from_buffer(pages)  # nothing is read: mapping loads no page
            status = mincore(ctypes.addressof(first), size, flags)
            del first  # a map with a view on it cannot be closed
        if status:
            return None
        resident += sum(flag & 1 for flag in flags)
        total += len(flags)
    return resident / total if total else None


def storage_counts() -> tuple[int, int] | None:
    """Return major faults of this process, and bytes that were read from storage for it; None where nobody counts."""
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_majflt, usage.ru_inblock * _SECTOR_BYTES
