"""Run functions in a fresh Python process and bring their results, or their errors, back.

Each exported file is loaded in a process of its own: its peak memory is its own, its libraries' thread pools do
not meet another library's, and a crash in native code becomes an error message instead of the end of the run.
The parent sleeps meanwhile. Requests and results cross as lines of JSON, so that nothing live does; what libraries
print goes to a log.

Run as `python -m ammd.runtime.child`: each line in is `[MODULE:FUNCTION, REQUEST]`, each line out its outcome, or a
part of it where the function is a generator. One that is named on the command line is the only one.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Self, TextIO, cast

from ammd import errors
from ammd.errors import AmmdError, EngineError
from ammd.parent_death import mortal_command

# numpy's own threads would fight with those of the engine, which spin between two tokens.
CHILD_ENVIRONMENT: Mapping[str, str] = {"OPENBLAS_NUM_THREADS": "1"}
_PACKAGE = "ammd.runtime"
_LAST_LINES = 6


def call(target: str, request: Mapping[str, object]) -> dict[str, Any]:
    """Return what the function `target` gives for `request` in a fresh process.

    Args:
        target: `module:function` inside this package; the function takes and returns a JSON object.
        request: JSON values; paths as text.

    Raises:
        AmmdError: The function raised it.
        EngineError: The process crashed or was killed; the message carries its last lines.
    """
    with Child() as child:
        return child.call(target, request)


class Child:
    """A process for several calls, one after the other; a context manager.

    For work in one library that shares nothing but its import, which takes torch seconds.
    """

    def __init__(self) -> None:
        """Start the process."""
        command = mortal_command(f"{_PACKAGE}.child")
        environment = {**os.environ, **CHILD_ENVIRONMENT}
        self._log = tempfile.TemporaryFile(prefix="ammd-child-")  # noqa: SIM115 - lives as long as the process
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
            encoding="utf-8",
        )

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._process.pid

    def call(self, target: str, request: Mapping[str, object]) -> dict[str, Any]:
        """As the function `call`, in this process."""
        self._ask(target, request)
        return outcome_of(self._next_line(target))

    def stream(self, target: str, request: Mapping[str, object]) -> Iterator[dict[str, Any]]:
        """Give what the generator function `target` yields, each as soon as it comes; raises as `call` does."""
        self._ask(target, request)
        while "part" in (answer := self._next_line(target)):
            yield answer["part"]
        outcome_of(answer)

    def _ask(self, target: str, request: Mapping[str, object]) -> None:
        stdin = cast(TextIO, self._process.stdin)
        with contextlib.suppress(BrokenPipeError):  # it died before it could read, which its silence will say
            stdin.write(json.dumps([target, request]) + "\n")
            stdin.flush()

    def _next_line(self, target: str) -> dict[str, Any]:
        line = cast(TextIO, self._process.stdout).readline()
        if not line:
            raise self._death(target)
        return cast(dict[str, Any], json.loads(line))

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process; at once after an error: Ctrl-C must not leave one behind that goes on measuring."""
        if kind is not None:
            self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(BrokenPipeError):
                cast(TextIO, stream).close()
        try:
            self._process.wait()
        finally:
            self._process.kill()
            self._process.wait()
            self._log.close()

    def _death(self, target: str) -> EngineError:
        status = self._process.wait()
        self._log.seek(0)
        lines = self._log.read().decode("utf-8", errors="replace").split("\n")
        last = "\n".join([line for line in lines if line.strip()][-_LAST_LINES:])
        hint = ""
        if status < 0:
            how = f"was killed by {signal.Signals(-status).name}"
            if -status == signal.SIGKILL:
                hint = "the machine probably ran out of memory; close other programs or use a smaller model"
        else:
            how = f"ended with exit code {status}"
        message = f"the process for `{target}` {how}" + (f"; its last lines:\n{last}" if last else "")
        return EngineError(message, hint=hint, status=status)


def outcome_of(answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a function gave, from the line that its process wrote.

    Raises:
        AmmdError: The function raised it.
    """
    if "error" in answer:
        raise _rebuild(answer["error"])
    return cast(dict[str, Any], answer["result"])


def _rebuild(error: Mapping[str, Any]) -> AmmdError:
    kind = getattr(errors, str(error["kind"]), EngineError)
    return cast(AmmdError, kind(error["message"], hint=error["hint"], **error["facts"]))


def _describe(error: AmmdError) -> dict[str, object]:
    facts = json.loads(json.dumps(error.facts, default=str))
    return {"kind": type(error).__name__, "message": str(error), "hint": error.hint, "facts": facts}


def main() -> None:
    """Answer requests until there are no more."""
    # What libraries print to standard output belongs in the log, not between the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.argv[1:] or sys.stdin:
        target, request = json.loads(line)
        module, _, function = target.partition(":")
        try:
            run = getattr(importlib.import_module(f"{_PACKAGE}.{module}"), function)
            result = run(request)
            if isinstance(result, Iterator):
                for part in result:
                    _write(answers, {"part": part})
                result = {}
            outcome: dict[str, object] = {"result": result}
        except AmmdError as exc:
            outcome = {"error": _describe(exc)}
        _write(answers, outcome)


def _write(answers: TextIO, line: Mapping[str, object]) -> None:
    answers.write(json.dumps(line) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
