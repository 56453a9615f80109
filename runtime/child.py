"""Run one function in a fresh Python process and bring its result, or its error, back.

Each model is loaded in a process of its own: its peak memory is its own, its libraries' thread pools do not
meet another library's, and a crash in native code becomes an error message instead of the end of the run.
The parent sleeps in `wait` meanwhile. Requests and results are JSON, so that nothing live crosses over.

Run as `python -m ammd.runtime.child MODULE:FUNCTION REQUEST.json RESULT.json`.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from ammd import errors
from ammd.errors import AmmdError, EngineError

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
    with tempfile.TemporaryDirectory(prefix="ammd-child-") as folder:
        request_path, result_path, log_path = (
            Path(folder) / name for name in ("request.json", "result.json", "log.txt")
        )
        request_path.write_text(json.dumps(request), encoding="utf-8")
        # -P: the folder the user stands in must not shadow installed modules.
        module = f"{_PACKAGE}.child"
        command = [sys.executable, "-P", "-m", module, target, str(request_path), str(result_path)]
        # numpy's own threads would fight with those of the engine, which spin between two tokens.
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            )
            status = _wait(process)
        if status or not result_path.is_file():
            raise _death(target, status, log_path)
        outcome: dict[str, Any] = json.loads(result_path.read_text(encoding="utf-8"))
    if "error" in outcome:
        raise _rebuild(outcome["error"])
    return cast(dict[str, Any], outcome["result"])


def _wait(process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait()
    finally:  # Ctrl-C must not leave a process behind that goes on measuring
        if process.poll() is None:
            process.kill()
            process.wait()


def _death(target: str, status: int, log_path: Path) -> EngineError:
    lines = log_path.read_text(encoding="utf-8", errors="replace").split("\n")
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


def _rebuild(error: Mapping[str, Any]) -> AmmdError:
    kind = getattr(errors, str(error["kind"]), EngineError)
    return cast(AmmdError, kind(error["message"], hint=error["hint"], **error["facts"]))


def _describe(error: AmmdError) -> dict[str, object]:
    facts = json.loads(json.dumps(error.facts, default=str))
    return {"kind": type(error).__name__, "message": str(error), "hint": error.hint, "facts": facts}


def main(arguments: list[str]) -> None:
    """Run `MODULE:FUNCTION` on the request file and write the result file."""
    target, request_path, result_path = arguments
    module, _, function = target.partition(":")
    request = json.loads(Path(request_path).read_text(encoding="utf-8"))
    try:
        run = getattr(importlib.import_module(f"{_PACKAGE}.{module}"), function)
        outcome: dict[str, object] = {"result": run(request)}
    except AmmdError as exc:
        outcome = {"error": _describe(exc)}
    Path(result_path).write_text(json.dumps(outcome), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
