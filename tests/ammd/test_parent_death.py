from __future__ import annotations

import os
import select
import subprocess
import sys
from pathlib import Path

import pytest

from ammd.parent_death import mortal_command

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")

# A process that starts one that ends with it, tells its number, and is killed.
PARENT = """
import subprocess, sys
from ammd.parent_death import mortal_command
child = subprocess.Popen(mortal_command("deaf"), stdout=subprocess.PIPE, text=True)
print(child.stdout.readline().strip(), flush=True)
child.wait()
"""


@pytest.fixture
def deaf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that tells its number and arguments, then looks at nothing."""
    (tmp_path / "deaf.py").write_text(
        "import os, sys, time\nprint(os.getpid(), *sys.argv[1:], flush=True)\n"
        "if len(sys.argv) == 1: time.sleep(600)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)


def test_process_is_gone_once_its_parent_was_killed(deaf: None) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        descriptor = os.pidfd_open(pid)
        parent.kill()
        parent.wait()
    assert select.select([descriptor], [], [], 60)[0]  # readable once it has ended
    os.close(descriptor)


def test_one_whose_parent_has_ended_before_does_not_begin(deaf: None) -> None:
    command = mortal_command("deaf", ["said"])
    command[4] = "1"
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    assert (done.returncode, done.stdout) == (1, b"")


def test_module_gets_its_arguments(deaf: None) -> None:
    done = subprocess.run(mortal_command("deaf", ["a", "-b"]), stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.split()[1:] == ["a", "-b"]
