"""The child's side of a stage: read a job, import the stage, run it, leave an answer.

    python -P -m ammd.pipeline.worker JOB

A stage gets a process of its own so that its peak memory is its own, so that nothing it leaves loaded slows
the next one, and so that a crash in native code is a message instead of the end of `ammd`. Errors travel as
JSON (class, message, hint, facts), so the parent raises what the stage raised; a disk that is full is found out here,
whatever a library made of it. The job's standard input is a
pipe held by the parent: when it closes the parent is gone, and the child ends with everything it started.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

from ammd.artifact import write_json
from ammd.durable import disk_full, is_disk_full
from ammd.errors import AmmdError
from ammd.event_log import ENVIRONMENT as EVENT_LOG

NO_ANSWER = 74  # as sysexits.h has it for what cannot be read or written


def main(job_path: Path) -> None:
    """Run the job at `job_path` and write its answer beside it, whatever happens; exit with 1 if it is an error."""
    _end_with_parent()
    job = json.loads(job_path.read_text(encoding="utf-8"))
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("ammd").setLevel(job["log_level"])  # other libraries stay at warnings
    if job["cpus"] and hasattr(os, "sched_setaffinity"):  # before a library counts cores
        os.sched_setaffinity(0, job["cpus"])
    if job["event_log"]:
        os.environ[EVENT_LOG] = job["event_log"]
    is_first = os.environ.get("RANK", "0") == "0"  # of the processes that run this stage together
    path = Path(job["answer"])
    try:
        results = _run(job)
        if is_first:
            write_json(path, {"results": results})
        return
    except Exception as exc:  # noqa: BLE001 - the border of the process: the parent names what is lost here
        error = _describe(exc, Path(job["folder"]))
    if not path.exists():  # the first error is the cause, the others' are that they miss somebody
        try:
            write_json(path, {"error": error})
        except OSError:
            sys.exit(NO_ANSWER)
    sys.exit(1)


def _run(job: dict[str, Any]) -> Any:
    from pydantic import TypeAdapter

    module = importlib.import_module(job["module"])
    settings_module, settings_name = job["settings_type"].split(":")
    settings_type = getattr(importlib.import_module(settings_module), settings_name)
    inputs = TypeAdapter(getattr(module, job["inputs_type"])).validate_python(job["inputs"])
    return module.run(inputs, settings_type.model_validate(job["settings"]), Path(job["folder"]))


def _describe(exc: Exception, folder: Path) -> dict[str, Any]:
    where = "".join(traceback.format_exception(exc))
    known = exc if isinstance(exc, AmmdError) else None
    if is_disk_full(exc):
        known = disk_full(folder, doing="the stage was at work")
    if known is not None:
        kind, text = type(known).__name__, str(known)
        return {"kind": kind, "message": text, "hint": known.hint, "facts": known.facts, "traceback": where}
    text = "".join(traceback.format_exception_only(exc)).strip()
    message = "out of memory" if _is_for_want_of_memory(exc) else text
    return {"kind": "", "message": message, "hint": "", "facts": {}, "traceback": where}


def _is_for_want_of_memory(exc: BaseException) -> bool:
    """Tell it of Python's own error and of both of torch's, which is not imported for this."""
    is_of_gpu = type(exc).__name__ == "OutOfMemoryError"
    is_of_cpu = isinstance(exc, RuntimeError) and "DefaultCPUAllocator" in str(exc)
    return isinstance(exc, MemoryError) or is_of_gpu or is_of_cpu


def _end_with_parent() -> None:
    """Kill this process group once the parent's end of standard input closes."""
    parent = os.dup(0)
    # What the stage starts must not sit on the pipe: it would wait for input, or keep the pipe open.
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)

    def watch() -> None:
        os.read(parent, 1)
        if os.getpgrp() == os.getpid():
            os.killpg(0, signal.SIGKILL)
        os._exit(1)  # started by hand, in somebody else's group

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
