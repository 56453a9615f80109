"""The parent's side of a stage: start a fresh child, sleep until it ends, make results or an error of it.

The parent blocks in `wait4`, which costs no processor time beside a stage that measures speed and returns
the child's own peak memory (that of its largest process, if it starts others).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ammd.errors
from ammd.artifact import write_json
from ammd.errors import AmmdError
from ammd.machine import available_cores
from ammd.settings import Settings

from .stages import Stage

_GRACE_S = 5.0  # between asking a child to end and killing it


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a stage returned and what it cost."""

    results: dict[str, Any]
    seconds: float
    peak_rss_bytes: int


def run_in_child(
    stage: Stage,
    *,
    inputs: Mapping[str, Any],
    settings: Settings,
    folder: Path,
) -> Outcome:
    """Run `stage` in a new process and return its results.

    Args:
        stage: Which code to run.
        inputs: JSON form of the stage's inputs record.
        settings: The stage's settings.
        folder: Empty folder for the stage to write into.

    Raises:
        AmmdError: What the stage raised, in its own class; a crash, a kill or an unexpected exception in the
            class that the stage table names.
        KeyboardInterrupt: Ctrl-C; the child and all it started have ended by then.
    """
    with tempfile.TemporaryDirectory(prefix="ammd-") as desk:
        answer = Path(desk, "answer.json")
        job = Path(desk, "job.json")
        write_json(
            job,
            {
                "module": stage.module,
                "inputs_type": stage.inputs,
                "inputs": inputs,
                "settings_type": f"{type(settings).__module__}:{type(settings).__qualname__}",
                "settings": settings.model_dump(mode="json"),
                "folder": str(folder),
                "log_level": logging.getLogger("ammd").getEffectiveLevel(),
                "answer": str(answer),
            },
        )
        status, usage, seconds = _run_process(job, stage.environment)
        if not answer.is_file():
            raise _death(stage, status, usage)
        document = json.loads(answer.read_text(encoding="utf-8"))
    if "error" in document:
        raise _revive(stage, document["error"])
    return Outcome(results=document["results"], seconds=seconds, peak_rss_bytes=_peak_bytes(usage))


def _run_process(job: Path, environment: Mapping[str, str]) -> tuple[int, resource.struct_rusage, float]:
    started = time.monotonic()
    # -P: a file in the current folder must not stand in for a library.
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "ammd.pipeline.worker", str(job)],
        stdin=subprocess.PIPE,
        stdout=2,  # standard output is data, and it is the parent's
        env=_environment(environment),
        process_group=0,  # Ctrl-C reaches the parent alone, which then ends the whole group
    )
    try:
        _, wait_status, usage = os.wait4(process.pid, 0)
    except BaseException:
        _end_group(process)
        raise
    process.returncode = os.waitstatus_to_exitcode(wait_status)
    _kill_group(process.pid)
    if process.stdin is not None:
        process.stdin.close()
    return process.returncode, usage, time.monotonic() - started


def _environment(of_stage: Mapping[str, str]) -> dict[str, str]:
    return {
        **of_stage,
        "OMP_NUM_THREADS": str(available_cores()),
        "TOKENIZERS_PARALLELISM": "false",  # its threads fight with torch's, and warn when a stage forks
        "TRANSFORMERS_VERBOSITY": "error",
        **os.environ,
        "PYTHONUNBUFFERED": "1",
    }


def _end_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    # A second Ctrl-C does not wait for good manners.
    with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
        process.wait(_GRACE_S)
    _kill_group(process.pid)
    process.wait()


def _kill_group(group: int) -> None:
    """Kill what a dead child left running; nothing is left in the usual case."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def _peak_bytes(usage: resource.struct_rusage) -> int:
    return usage.ru_maxrss if sys.platform == "darwin" else usage.ru_maxrss * 1024


def _revive(stage: Stage, error: Mapping[str, Any]) -> AmmdError:
    facts = {**error["facts"], "traceback": error["traceback"]}
    if error["kind"]:
        kind: type[AmmdError] = getattr(ammd.errors, error["kind"])
        return kind(error["message"], hint=error["hint"], **facts)
    kind = getattr(ammd.errors, stage.error)
    hint = "free memory or take a smaller model, batch or length"
    if error["message"] != "out of memory":
        hint = "`--debug` shows the traceback; the stages before this one are kept"
    return kind(f"stage `{stage.name}` failed: {error['message']}", hint=hint, **facts)


def _death(stage: Stage, returncode: int, usage: resource.struct_rusage) -> AmmdError:
    kind: type[AmmdError] = getattr(ammd.errors, stage.error)
    peak = f"{_peak_bytes(usage) / 2**30:.1f} GiB"
    if returncode == -signal.SIGKILL:
        return kind(
            f"stage `{stage.name}` was killed (SIGKILL) at {peak}, probably for want of memory",
            hint="free memory or take a smaller batch; `ammd run` again continues with this stage",
        )
    how = f"by {signal.Signals(-returncode).name}" if returncode < 0 else f"with exit code {returncode}"
    return kind(
        f"stage `{stage.name}` ended {how} without an answer",
        hint="its last lines above say more; `ammd run` again continues with this stage",
    )
