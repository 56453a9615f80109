"""Facts about this machine and process, for manifests, benchmarks and estimates. Unknown is None."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import os
import platform
import shutil
from pathlib import Path
from typing import Any

from .errors import ArtifactError

_CGROUP = Path("/sys/fs/cgroup")
_CPUS = Path("/sys/devices/system/cpu")

LIBRARIES = (
    "ammd",
    "torch",
    "transformers",
    "accelerate",
    "gguf",
    "llama-cpp-python",
    "onnxruntime",
    "onnxruntime-genai",
)


def available_cores() -> int:
    """Return how many cores this process may use: affinity mask, bounded by the cgroup quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_quota_cores()
    return max(1, cores if quota is None else min(cores, int(quota)))


def available_cpus() -> list[int]:
    """Return the ids of the cores that this process may be pinned to, as many as `available_cores`."""
    cores = available_cores()
    return sorted(os.sched_getaffinity(0))[:cores] if hasattr(os, "sched_getaffinity") else [*range(cores)]


def physical_cores() -> int:
    """Return how many of the cores in the affinity mask share nothing: hyper-threads of one core count once."""
    cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    siblings = {_siblings(cpu) or str(cpu) for cpu in cpus}
    return len(siblings)


def cpu_flags() -> frozenset[str]:
    """Return the CPU's feature names as Linux lists them; empty where they cannot be read."""
    return frozenset((_cpuinfo("flags") or _cpuinfo("Features") or "").split())


def has_fast_bfloat16() -> bool:
    """Tell whether the CPU multiplies bfloat16 in hardware (otherwise it is slower than float32)."""
    return not cpu_flags().isdisjoint({"amx_bf16", "avx512_bf16", "bf16"})


def library_versions() -> dict[str, str]:
    """Return the installed version of each library whose version changes results."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def describe_machine() -> dict[str, Any]:
    """Return CPU, cores, memory and system as flat JSON values."""
    import psutil

    return {
        "cpu": _cpuinfo("model name") or platform.processor() or None,
        "cores": available_cores(),
        "physical_cores": physical_cores(),
        "ram_bytes": psutil.virtual_memory().total,
        "system": platform.platform(),
        "bfloat16": has_fast_bfloat16(),
    }


def check_free_disk(folder: Path, *, need_bytes: int, purpose: str) -> None:
    """Check, before work starts, that the disk of `folder` (which need not exist yet) has room for it.

    Args:
        folder: Where the files will lie.
        need_bytes: An estimate of the most that will lie there at one time.
        purpose: What the room is for, as in "fetching `x`".

    Raises:
        ArtifactError: Less is free.
    """
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < need_bytes:
        raise ArtifactError(
            f"{purpose} needs {need_bytes / 2**20:.0f} MiB of disk, "
            f"`{existing}` has {free / 2**20:.0f} MiB free",
            hint="free some space, or choose a folder on another disk",
            path=str(folder),
            expected=need_bytes,
            found=free,
        )


def available_memory_bytes() -> int:
    """Return how much memory this process and its children may still take: free, and within the cgroup."""
    free = _free_memory_bytes()
    try:
        limit = (_CGROUP / "memory.max").read_text(encoding="ascii").strip()
        used = int((_CGROUP / "memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return free
    return free if limit == "max" else max(0, min(free, int(limit) - used))


def _free_memory_bytes() -> int:
    try:
        import psutil
    except ImportError:  # a device has what its engine needs, and Linux
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        return int(text.partition("MemAvailable:")[2].split()[0]) * 1024
    return int(psutil.virtual_memory().available)


def total_memory_bytes() -> int:
    """Return how much memory this machine has, or the cgroup allows where that is less."""
    import psutil

    whole = int(psutil.virtual_memory().total)
    try:
        limit = (_CGROUP / "memory.max").read_text(encoding="ascii").strip()
    except OSError:
        return whole
    return whole if limit == "max" else min(whole, int(limit))


def peak_rss_bytes() -> int:
    """Return this process's peak resident memory so far, file-mapped pages included."""
    # Linux's getrusage carries the parent's peak across fork and exec; VmHWM is the process's own.
    own = status_bytes("VmHWM")
    if own is not None:
        return own
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def status_bytes(field: str, *, pid: int | None = None) -> int | None:
    """Return a memory field such as `VmRSS` of a process, this one if none is named, from Linux's status file.

    None elsewhere, and of a process that has ended.
    """
    try:
        lines = (
            Path(f"/proc/{pid or 'self'}/status").read_text(encoding="ascii", errors="replace").splitlines()
        )
    except OSError:
        return None
    for line in lines:
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    return None


def release_freed_memory() -> None:
    """Hand memory that was freed, but is kept for the next tensor, back to the system; only glibc knows how.

    Tensors whose sizes differ from step to step leave gaps between them, and a heap that is never cleared grows: a
    training run of 88 steps reached 8.0 GiB, where ten steps take 4.8 GiB.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _cpuinfo(field: str) -> str | None:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == field:
            return value.strip()
    return None


def _siblings(cpu: int) -> str | None:
    """Return the hyper-threads of the core that a CPU belongs to, as Linux writes them."""
    try:
        return (_CPUS / f"cpu{cpu}/topology/thread_siblings_list").read_text(encoding="ascii").strip()
    except OSError:
        return None


def _cgroup_quota_cores() -> float | None:
    try:
        quota, period = (_CGROUP / "cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)
