"""Counters from texts as kernels write them; what happened between two of them."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ammd.runtime import noise
from ammd.runtime.noise import Counters, between, oom_kills, read_counters

# Of a virtual machine with two cores: user nice system idle iowait irq softirq steal guest guest_nice.
STAT = """\
cpu  9072490 1205397 979218 5064146 34984 11 4627 23957 500 0
cpu0 3913500 589894 407362 3256796 8529 5 931 11699 250 0
cpu1 5158990 615503 571856 1807350 26455 6 3695 12258 250 0
intr 57071286 0 0
ctxt 123456
"""
V1_GROUPS = "9:name=systemd:/\n4:memory:/process_api/a1\n2:cpuacct:/\n1:cpu:/jobs/a1\n0::/\n"


def write(root: Path, texts: dict[str, str]) -> Path:
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_counters_are_those_of_the_kernels_texts(tmp_path: Path) -> None:
    proc = write(tmp_path / "proc", {"stat": STAT, "self/cgroup": "0::/user.slice/session-3.scope\n"})
    sys_root = write(
        tmp_path / "sys",
        {
            "fs/cgroup/user.slice/cpu.stat": "usage_usec 9\nnr_throttled 2\nthrottled_usec 2500000\n",
            "fs/cgroup/user.slice/session-3.scope/cpu.stat": "usage_usec 9\nthrottled_usec 0\n",
            "devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "2400000\n",
            "devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "1600000\n",
            "class/thermal/thermal_zone0/temp": "41000\n",
            "class/thermal/thermal_zone1/temp": "67500\n",
        },
    )
    found = read_counters(proc=proc, sys=sys_root)
    ticks = os.sysconf("SC_CLK_TCK")
    # idle and iowait are not busy, and guest is in user already
    assert found.busy_cpu_s == (9072490 + 1205397 + 979218 + 11 + 4627) / ticks
    assert found.steal_cpu_s == 23957 / ticks
    assert found.cores == 2
    assert found.throttled_s == 2.5  # of the slice around it, whose quota holds for it too
    assert found.frequency_hz == 2_000_000_000
    assert found.temperature_celsius == 67.5


def test_first_version_of_cgroups_counts_in_nanoseconds(tmp_path: Path) -> None:
    proc = write(tmp_path / "proc", {"self/cgroup": V1_GROUPS})
    texts = {"fs/cgroup/cpu/jobs/a1/cpu.stat": "nr_periods 5\nnr_throttled 1\nthrottled_time 1500000000\n"}
    assert read_counters(proc=proc, sys=write(tmp_path / "sys", texts)).throttled_s == 1.5
    joined = {"self/cgroup": "3:cpu,cpuacct:/docker/of-the-host\n"}
    root = {"fs/cgroup/cpu,cpuacct/cpu.stat": "throttled_time 500000000\n"}
    seen = read_counters(proc=write(tmp_path / "p2", joined), sys=write(tmp_path / "s2", root))
    assert seen.throttled_s == 0.5  # in a container the path is the host's, and only its root is there


def test_what_is_not_told_is_none(tmp_path: Path) -> None:
    write(tmp_path, {"class/thermal/thermal_zone0/temp": "not a number\n"})
    found = read_counters(proc=tmp_path / "none", sys=tmp_path)
    told = (found.busy_cpu_s, found.steal_cpu_s, found.cores, found.throttled_s)
    assert (*told, found.frequency_hz, found.temperature_celsius) == (None,) * 6
    later = between(found, replace(found, clock_s=found.clock_s + 1), reading_s=0.0)
    assert (later.competing_share, later.steal_share, later.throttled_share) == (None, None, None)
    assert oom_kills(proc=tmp_path) is None


def counters(**changes: Any) -> Counters:
    known: dict[str, Any] = {
        "clock_s": 10.0,
        "own_cpu_s": 5.0,
        "busy_cpu_s": 100.0,
        "steal_cpu_s": 1.0,
        "cores": 4,
        "throttled_s": 0.0,
        "involuntary_switches": 7,
        "frequency_hz": 2_000_000_000,
        "temperature_celsius": 50.0,
    }
    return Counters(**(known | changes))


def test_shares_are_of_all_cores_time() -> None:
    after = counters(
        clock_s=15.0,
        own_cpu_s=9.0,
        busy_cpu_s=106.0,
        steal_cpu_s=2.0,
        throttled_s=0.5,
        involuntary_switches=19,
        frequency_hz=1_500_000_000,
        temperature_celsius=80.0,
    )
    found = between(counters(), after, reading_s=0.001)
    assert found.seconds == 5
    assert found.competing_share == pytest.approx((6 - 4) / (5 * 4))
    assert found.steal_share == pytest.approx(1 / (5 * 4))
    assert found.throttled_share == pytest.approx(0.5 / 5)
    assert found.involuntary_switches == 12
    assert found.frequency_hz == (2_000_000_000, 1_500_000_000)
    assert found.temperature_celsius == (50.0, 80.0)


def test_ticks_that_lag_behind_own_time_are_no_negative_load() -> None:
    after = counters(clock_s=11.0, own_cpu_s=6.004, busy_cpu_s=101.0)
    assert between(counters(), after, reading_s=0.0).competing_share == 0


def test_killed_for_want_of_memory_is_counted_by_the_kernel(tmp_path: Path) -> None:
    write(tmp_path, {"vmstat": "nr_free_pages 4\noom_kill 3\nnuma_hit 1\n"})
    assert oom_kills(proc=tmp_path) == 3


def test_own_process_is_seen_at_work() -> None:
    script = (
        "from ammd.runtime.noise import between, read_counters\n"
        "before = read_counters()\n"
        "while read_counters().own_cpu_s - before.own_cpu_s < 0.05: pass\n"
        "after = read_counters()\n"
        "print(after.own_cpu_s - before.own_cpu_s >= 0.05, between(before, after, reading_s=0).seconds >= 0.04)"
    )
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True"]
    assert noise.load_1min() is None or noise.load_1min() >= 0
