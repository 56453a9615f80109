"""What else the machine did while passes were timed: counters of the kernel, read before and after them.

Nothing is read while a clock runs, so that looking costs the measurement nothing; how long one reading takes is told
as `reading_s`. What this machine does not tell (a virtual machine has no frequencies, macOS no /proc) is None.

Other processes' CPU time is what all cores did less what this process did. /proc/stat counts in ticks of mostly 10 ms,
so it says little about less than a second.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from . import fact_texts

_PROC, _SYS = Path("/proc"), Path("/sys")
_BUSY = (0, 1, 2, 5, 6)  # of /proc/stat's `cpu` lines: user, nice, system, irq, softirq
_STEAL = 7
_THROTTLED = {"throttled_usec": 1e-6, "throttled_time": 1e-9}  # cgroup 2 and 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """What the kernel had counted at one moment; seconds of CPU time are sums over cores."""

    clock_s: float
    own_cpu_s: float  # of this process
    busy_cpu_s: float | None  # of the whole machine
    steal_cpu_s: float | None  # taken by the host of a virtual machine
    cores: int | None  # that are counted in these two
    throttled_s: float | None  # because the cgroup's quota was used up
    involuntary_switches: int | None  # this process wanted to go on and was not let
    frequency_hz: int | None  # mean over cores
    temperature_celsius: float | None  # of the hottest zone


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """What happened between two moments. Shares are of all cores' time, or of the time for `throttled_share`."""

    seconds: float
    competing_share: float | None  # CPU time of other processes
    steal_share: float | None
    throttled_share: float | None
    involuntary_switches: int | None
    frequency_hz: tuple[int | None, int | None]  # before, after
    temperature_celsius: tuple[float | None, float | None]
    reading_s: float  # what one look at the counters takes


def read_counters(*, proc: Path = _PROC, sys: Path = _SYS) -> Counters:
    """Return the counters of now."""
    busy, steal, cores = _cpu_times(_text(proc / "stat"))
    return Counters(
        clock_s=time.perf_counter(),
        own_cpu_s=time.process_time(),
        busy_cpu_s=busy,
        steal_cpu_s=steal,
        cores=cores,
        throttled_s=_throttled(_text(proc / "self" / "cgroup"), sys / "fs" / "cgroup"),
        involuntary_switches=_involuntary_switches(),
        frequency_hz=_frequency(sys / "devices" / "system" / "cpu"),
        temperature_celsius=_temperature(sys / "class" / "thermal"),
    )


def between(before: Counters, after: Counters, *, reading_s: float) -> Noise:
    """Return what happened from `before` to `after`."""
    seconds = after.clock_s - before.clock_s
    own = after.own_cpu_s - before.own_cpu_s
    busy = _gained(before.busy_cpu_s, after.busy_cpu_s)
    steal = _gained(before.steal_cpu_s, after.steal_cpu_s)
    throttled = _gained(before.throttled_s, after.throttled_s)
    capacity = seconds * (after.cores or 0)
    switches = _gained(before.involuntary_switches, after.involuntary_switches)
    return Noise(
        seconds=seconds,
        competing_share=max(0.0, busy - own) / capacity if busy is not None and capacity else None,
        steal_share=steal / capacity if steal is not None and capacity else None,
        throttled_share=throttled / seconds if throttled is not None and seconds else None,
        involuntary_switches=None if switches is None else int(switches),
        frequency_hz=(before.frequency_hz, after.frequency_hz),
        temperature_celsius=(before.temperature_celsius, after.temperature_celsius),
        reading_s=reading_s,
    )


def load_1min() -> float | None:
    """Return the load average of the last minute."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def oom_kills(*, proc: Path = _PROC) -> int | None:
    """Return how many processes the kernel has killed for want of memory since it started."""
    return fact_texts.oom_kills(_text(proc / "vmstat"))


def _cpu_times(stat: str) -> tuple[float | None, float | None, int | None]:
    """Return busy and stolen seconds of all cores, and how many cores these are."""
    lines = [line.split() for line in stat.splitlines() if line.startswith("cpu")]
    whole = next((line[1:] for line in lines if line[0] == "cpu"), None)
    if whole is None:
        return None, None, None
    ticks_per_s = os.sysconf("SC_CLK_TCK")
    busy = sum(int(whole[place]) for place in _BUSY) / ticks_per_s
    steal = int(whole[_STEAL]) / ticks_per_s if len(whole) > _STEAL else None
    return busy, steal, len(lines) - 1


def _throttled(cgroups: str, root: Path) -> float | None:
    """Return the most that this process's cgroup, or one that it lies in, has been throttled."""
    found = [
        int(value) * _THROTTLED[name]
        for folder in _cgroup_folders(cgroups, root)
        for name, _, value in (line.partition(" ") for line in _text(folder / "cpu.stat").splitlines())
        if name in _THROTTLED
    ]
    return max(found, default=None)


def _cgroup_folders(cgroups: str, root: Path) -> Iterator[Path]:
    """Yield the folders of the cgroup that rules CPU time and of those around it, in either version's layout."""
    for line in cgroups.splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            base = root
        elif "cpu" in controllers.split(","):
            base = root / controllers if (root / controllers).is_dir() else root / "cpu"
        else:
            continue
        inner = PurePosixPath(path)
        # In a container the path may be the host's, of which only the root is to be seen.
        yield from (base / str(part).lstrip("/") for part in (inner, *inner.parents))


def _involuntary_switches() -> int | None:
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def _frequency(cpus: Path) -> int | None:
    """Return the mean of the cores' frequencies; only cpufreq's are of now, those of /proc/cpuinfo may be nominal."""
    found = _numbers(cpus.glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))
    return round(1000 * statistics.fmean(found)) if found else None


def _temperature(zones: Path) -> float | None:
    found = _numbers(zones.glob("thermal_zone*/temp"))
    return max(found) / 1000 if found else None


def _numbers(paths: Iterator[Path]) -> list[int]:
    found = []
    for path in paths:
        with contextlib.suppress(ValueError):
            found.append(int(_text(path)))
    return found


def _text(path: Path) -> str:
    """Return a file's text; of one that is not there, or not to be read, the empty one."""
    try:
        return path.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def _gained(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else max(0.0, after - before)
