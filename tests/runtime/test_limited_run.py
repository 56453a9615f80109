"""Limits of memory: who holds them, and what is told of a file that breaks one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ammd.runtime import memory_cap
from ammd.runtime.artifact_ref import ArtifactRef
from ammd.runtime.limited_run import Limits, run_under_limits
from ammd.runtime.memory_cap import Enforcement, capped

TAKES_200_MIB = "import time; held = bytearray(200 << 20); time.sleep(60)"


def test_watched_process_over_its_limit_is_killed(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", TAKES_200_MIB])
    with capped(process.pid, 150 << 20, root=tmp_path) as cap:  # no cgroup there
        status = process.wait(timeout=60)
    assert status == -9
    assert cap.enforcement is Enforcement.WATCHED
    assert cap.was_exceeded
    assert cap.seen_bytes > 150 << 20


def test_process_under_its_limit_is_left_alone(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", "print()"], stdout=subprocess.DEVNULL)
    with capped(process.pid, 1 << 30, root=tmp_path) as cap:
        assert process.wait(timeout=60) == 0
    assert not cap.was_exceeded


def test_kernels_limit_is_preferred_where_a_group_can_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A folder stands for the file system: a new group comes with the files of the memory controller.
    group = tmp_path / "ammd-77"  # beside our own: one with processes in it hands no controllers on
    monkeypatch.setattr(memory_cap, "_own_group", lambda root: root / "ours")
    make = Path.mkdir

    def mkdir(path: Path, *arguments: object, **named: object) -> None:
        make(path, *arguments, **named)  # type: ignore[arg-type]
        for name in ("memory.max", "memory.swap.max", "cgroup.procs"):
            (path / name).touch()
        (path / "memory.events").write_text("max 4\noom 1\noom_kill 1\n")

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with capped(77, 12345, root=tmp_path) as cap:
        assert (group / "memory.max").read_text() == "12345"
        assert (group / "memory.swap.max").read_text() == "0"
        assert (group / "cgroup.procs").read_text() == "77"
    assert cap.enforcement is Enforcement.KERNEL
    assert cap.was_exceeded


def test_file_runs_under_its_limits_or_says_what_broke(tiny_gguf: Path) -> None:
    ref = ArtifactRef(name="tiny", path=tiny_gguf)
    wide = Limits(threads=64, memory_bytes=4 << 30, context_tokens=64)
    row, broken = run_under_limits(ref, wide, prompt_tokens=8, decode_tokens=4)
    assert not broken
    assert row["passes"] is True
    assert row["kind"] == "measured"
    assert row["threads"] < 64  # never more than there are
    assert 0 < row["peak_rss_bytes"] < wide.memory_bytes
    tight = Limits(threads=1, memory_bytes=8 << 20, context_tokens=64)  # less than Python itself takes
    row, (broken_one,) = run_under_limits(ref, tight, prompt_tokens=8, decode_tokens=4)
    assert broken_one.limit == "memory"
    assert row["passes"] is False
    assert "8 MiB" in row["broken"]
    assert "over" in row["broken"]


def test_file_that_its_engine_cannot_run_breaks_the_engine(tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    limits = Limits(threads=1, memory_bytes=4 << 30, context_tokens=64)
    row, (broken,) = run_under_limits(
        ArtifactRef(name="bad", path=path), limits, prompt_tokens=8, decode_tokens=4
    )
    assert broken.limit == "engine"
    assert "cannot load" in row["broken"]
