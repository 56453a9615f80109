from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ammd import machine
from ammd.errors import ArtifactError


def test_available_cores_is_at_least_one() -> None:
    assert machine.available_cores() >= 1


@pytest.mark.parametrize(("quota", "cores"), [(None, 4), (2.0, 2), (2.5, 2), (0.5, 1), (64.0, 4)])
def test_available_cores_is_bounded_by_the_cgroup_quota(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, cores: int
) -> None:
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.setattr(machine, "_cgroup_quota_cores", lambda: quota)
    assert machine.available_cores() == cores


@pytest.mark.parametrize(
    ("flags", "fast"), [("fpu sse avx2", False), ("fpu avx512_bf16", True), ("asimd bf16", True), ("", False)]
)
def test_fast_bfloat16_is_read_from_the_cpu_flags(
    monkeypatch: pytest.MonkeyPatch, flags: str, fast: bool
) -> None:
    monkeypatch.setattr(machine, "_cpuinfo", lambda field: flags if field == "flags" else None)
    assert machine.has_fast_bfloat16() is fast


def test_library_versions_names_only_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "LIBRARIES", ("ammd", "no-such-library"))
    assert set(machine.library_versions()) == {"python", "ammd"}


def test_machine_description_is_json() -> None:
    described = machine.describe_machine()
    assert json.loads(json.dumps(described)) == described
    assert described["ram_bytes"] > 0


def test_peak_rss_counts_what_was_touched() -> None:
    size = 64 << 20
    before = machine.peak_rss_bytes()
    block = bytearray(b"x") * size
    # A peak above the present size hides the block, so the bound is on the total.
    assert machine.peak_rss_bytes() >= max(before, len(block))


def test_available_memory_is_part_of_the_machine() -> None:
    import psutil

    assert 0 < machine.available_memory_bytes() <= psutil.virtual_memory().total


def test_free_disk_is_enough_for_nothing(tmp_path: Path) -> None:
    machine.check_free_disk(tmp_path / "not" / "yet", need_bytes=0, purpose="the test")


def test_too_little_disk_is_refused_with_both_sizes(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"the test needs \d+ MiB of disk, .* has \d+ MiB free") as caught:
        machine.check_free_disk(tmp_path / "not" / "yet", need_bytes=1 << 62, purpose="the test")
    assert caught.value.facts["expected"] == 1 << 62
    assert caught.value.hint


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's status file")
def test_peak_outlives_what_was_held_then() -> None:
    code = (
        "from ammd.machine import peak_rss_bytes, status_bytes\n"
        "held = b'x' * (256 << 20)\n"
        "del held\n"
        "print(peak_rss_bytes(), status_bytes('VmHWM'), status_bytes('VmRSS'), status_bytes('NoSuch'))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    peak, own, now, absent = done.stdout.split()
    assert peak == own
    assert int(peak) > 256 << 20 > int(now) > 0
    assert absent == "None"
    assert machine.status_bytes("VmRSS", pid=os.getpid()) is not None
    assert machine.status_bytes("VmRSS", pid=2**22 + 1) is None  # larger than any process has
