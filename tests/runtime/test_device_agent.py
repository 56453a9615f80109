"""The script that runs beside a benchmark, in each POSIX shell that is here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

AGENT = Path(__file__).parents[2] / "runtime/device_agent.sh"
SHELLS = {"sh": ["sh"], "bash": ["bash", "--posix"], "mksh": ["mksh"], "busybox": ["busybox", "sh"]}
pytestmark = pytest.mark.skipif(not shutil.which("taskset"), reason="`taskset` is missing")


@pytest.fixture(params=sorted(name for name in SHELLS if shutil.which(name)))
def shell(request: pytest.FixtureRequest) -> list[str]:
    return SHELLS[request.param]


def run(shell: list[str], limit_s: int, *command: str) -> tuple[int, list[str], dict[str, str]]:
    """Return the exit code, the command's own output and what the agent saw."""
    core = min(os.sched_getaffinity(0))
    reader, writer = os.pipe()
    done = subprocess.run(
        [*shell, str(AGENT), str(limit_s), f"{1 << core:x}", *command],
        stdin=reader,
        capture_output=True,
        text=True,
        check=False,
    )
    os.close(reader)
    os.close(writer)
    *lines, seen = done.stdout.splitlines()
    return done.returncode, lines, dict(pair.split("=", 1) for pair in seen.removeprefix("@@ammd ").split())


def test_output_and_exit_code_are_the_commands(shell: list[str]) -> None:
    code, lines, seen = run(shell, 60, "sh", "-c", "echo 'one  line'; sleep 0.3; exit 7")
    assert (code, lines, seen["code"], seen["end"]) == (7, ["one  line"], "7", "")


def test_memory_is_the_commands_peak(shell: list[str]) -> None:
    program = "import time; block = bytearray(64 << 20); time.sleep(0.6); print(len(block))"
    code, lines, seen = run(shell, 60, sys.executable, "-I", "-S", "-c", program)
    assert (code, lines) == (0, [str(64 << 20)])
    for name in ("VmHWM", "RssAnon"):
        assert (
            64 << 10 <= int(seen[name]) < 100 << 10
        )  # in kB: the block, and an interpreter without libraries
    assert int(seen["samples"]) >= 3


def test_a_command_that_does_not_end_is_killed(shell: list[str]) -> None:
    code, _, seen = run(shell, 1, "sleep", "1000")
    assert (code, seen["code"], seen["end"]) == (137, "137", "limit")
