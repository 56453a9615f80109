"""Run a converter in a child process and keep its output to ourselves unless it fails.

llama.cpp and the ONNX builder write hundreds of lines, some of them from native code that Python's logging
never sees. In a child of its own that output can be caught whole, the child's memory is given back when it
ends, and a crash in native code becomes an error with a message. The output goes to a file; when the child
fails, the error quotes its end and names the file. `AMMD_VERBOSE=1` shows it as it comes.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, NoReturn

from ammd.errors import AmmdError, ExportError
from ammd.machine import peak_rss_bytes, status_bytes
from ammd.parent_death import mortal_command

VERBOSE_VARIABLE = "AMMD_VERBOSE"
_QUOTED_LINES = 12
_OWN_ERROR = 70  # status of a child of our own whose last line is its error
_CHUNK_BYTES = 1 << 16
_WATCH_SECONDS = 0.1
_RSS_UNIT_BYTES = 1 if sys.platform == "darwin" else 1024  # of getrusage
_CHILD_ENVIRONMENT = {
    "PYTHONHASHSEED": "0",  # llama.cpp's converter writes some lists from sets
    "PYTHONDONTWRITEBYTECODE": "1",  # the source tree in the cache stays as it was checked
    "HF_HUB_OFFLINE": "1",  # everything lies in the checkpoint folder
    "TOKENIZERS_PARALLELISM": "false",
}

_watched: list[Cost] = []


@dataclass(slots=True)
class Cost:
    """What the children of a block of code took."""

    seconds: float = 0.0  # of the block
    peak_rss_bytes: int = 0  # of the largest child


@contextmanager
def measured() -> Iterator[Cost]:
    """Measure a block of code that runs converters."""
    cost, start = Cost(), time.perf_counter()
    _watched.append(cost)
    try:
        yield cost
    finally:
        _watched.remove(cost)
        cost.seconds = time.perf_counter() - start


def run_module(
    module: str, arguments: Sequence[str], *, task: str, environment: Mapping[str, str] | None = None
) -> None:
    """Run `python -m module arguments...` in this interpreter's environment and wait for it.

    Args:
        module: Its dotted name.
        arguments: Command-line arguments.
        task: What the child does, for the error: "convert `x` to GGUF".
        environment: Variables for the child beside the usual ones.

    Raises:
        ExportError: The child failed or was killed.
    """
    with tempfile.TemporaryFile(
        prefix="ammd-export-"
    ) as sink:  # has no name that a killed process could leave
        everything = {**os.environ, **_CHILD_ENVIRONMENT, **(environment or {})}
        status = _run(mortal_command(module, arguments), everything, sink=sink)
        sink.seek(0)
        said = "" if status == 0 else sink.read().decode("utf-8", errors="replace")
    if status == _OWN_ERROR:
        error = json.loads(said.splitlines()[-1])
        raise ExportError(error["message"], hint=error["hint"])
    if status != 0:
        raise _failure(status, said, task=task)


def _failure(status: int, said: str, *, task: str) -> ExportError:
    """Return the error of a converter that ended with `status`, and keep what it `said` where there is more to see."""
    if status == -signal.SIGKILL:
        return ExportError(
            f"cannot {task}: the converter was killed (SIGKILL), probably for want of memory",
            hint="close other programs, or export fewer schemes of a smaller model",
            status=status,
        )
    if status == -signal.SIGBUS:  # of a file that is mapped into memory and cannot grow
        return ExportError(f"cannot {task}: {os.strerror(errno.ENOSPC)}", status=status)
    reason = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
    end = _last_lines(said)
    message = f"cannot {task}: the converter {reason}" + (f"\n{end}" if end else "")
    try:
        descriptor, name = tempfile.mkstemp(prefix="ammd-export-", suffix=".log")
        with os.fdopen(descriptor, "w", encoding="utf-8") as log:
            log.write(said)
    except OSError:
        return ExportError(message, status=status)
    return ExportError(message, hint=f"its whole output is in `{name}`", log=name, status=status)


def end_child(main: Callable[[Sequence[str]], None]) -> NoReturn:
    """Run a child of our own and end it; an error that has a message reaches the parent as that message alone."""
    try:
        main(sys.argv[1:])
    except AmmdError as exc:
        sys.stderr.flush()
        sys.stdout.write("\n" + json.dumps({"message": str(exc), "hint": exc.hint}) + "\n")
        sys.stdout.flush()
        os._exit(_OWN_ERROR)  # nothing may print after that line
    sys.exit(0)


def is_verbose() -> bool:
    """Tell whether the user asked to see the converters' own output."""
    return os.environ.get(VERBOSE_VARIABLE, "") not in ("", "0")


def _run(command: Sequence[str], environment: Mapping[str, str], *, sink: IO[bytes]) -> int:
    """Return the child's exit status after copying its output to `sink`, and to stderr when verbose."""
    verbose = is_verbose()
    own_peak = peak_rss_bytes()
    with subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        bufsize=0,
    ) as child:
        assert child.stdout is not None
        watch = _PeakWatch(child.pid)
        try:
            while chunk := child.stdout.read(_CHUNK_BYTES):
                sink.write(chunk)
                if verbose:
                    sys.stderr.write(chunk.decode(errors="replace"))
                    sys.stderr.flush()
        except BaseException:  # Ctrl-C among them: the child must not go on writing
            child.kill()
            raise
        finally:
            watch.end()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    # The system counts this process's own peak for the child, which begins as a copy of it.
    whole = usage.ru_maxrss * _RSS_UNIT_BYTES
    peak = whole if whole > own_peak else watch.peak_rss_bytes or whole
    for cost in _watched:
        cost.peak_rss_bytes = max(cost.peak_rss_bytes, peak)
    return child.returncode


class _PeakWatch:
    """The peak memory of a running process as Linux tells it; 0 elsewhere."""

    def __init__(self, pid: int) -> None:
        self.peak_rss_bytes = 0
        self._pid = pid
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Stop looking."""
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(_WATCH_SECONDS):
            self.peak_rss_bytes = status_bytes("VmHWM", pid=self._pid) or self.peak_rss_bytes


def _last_lines(said: str) -> str:
    lines = [line.rstrip() for line in said.replace("\r", "\n").splitlines() if line.strip()]
    return "\n".join(lines[-_QUOTED_LINES:])
