"""Run a module in a process that ends with its parent, also where that is killed and can tell nobody.

    python -P -m ammd.parent_death PARENT MODULE ARGUMENTS...

PARENT is the parent's process number. Linux alone can do that; elsewhere the module runs on to its end.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import runpy
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1


def mortal_command(module: str, arguments: Sequence[str] = ()) -> list[str]:
    """Return the command that runs `module` in a process that ends with this one."""
    # -P: the folder the user stands in must not shadow installed modules.
    return [sys.executable, "-P", "-m", "ammd.parent_death", str(os.getpid()), module, *arguments]


def _end_with(parent: int) -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before
            os._exit(1)


if __name__ == "__main__":
    _end_with(int(sys.argv[1]))
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
