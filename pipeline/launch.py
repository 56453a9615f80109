"""The parent's side of a stage: start a fresh child, sleep until it ends, make results or an error of it.

The parent blocks in `wait4` (`process_group.py`), which costs no processor time beside a stage that measures speed
(the run's log takes a millisecond every two seconds) and returns the child's own peak memory (that of its largest
process, if it starts others).
"""

from __future__ import annotations

import json
import logging
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ammd.errors
from ammd.artifact import write_json
from ammd.durable import disk_full
from ammd.errors import AmmdError
from ammd.runtime.energy import joules_between, read_energy
from ammd.scratch import scratch_folder
from ammd.settings import Settings

from .process_group import Ended, Share, run_processes
from .stages import Stage
from .worker import NO_ANSWER

# Of a worker that could not even say so; a file that is mapped into memory is cut short by a full disk.
_NO_ROOM = (NO_ANSWER, -signal.SIGBUS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a stage returned and what it cost."""

    results: dict[str, Any]
    seconds: float
    cpu_seconds: float
    peak_rss_bytes: int
    joules: float | None  # of the whole processor; None where it does not tell

    @property
    def costs(self) -> dict[str, Any]:
        """What a manifest records of it."""
        return {
            "seconds": round(self.seconds, 3),
            "cpu_seconds": round(self.cpu_seconds, 3),
            "peak_rss_bytes": self.peak_rss_bytes,
            "joules": self.joules,
        }


def run_in_child(
    stage: Stage,
    *,
    inputs: Mapping[str, Any],
    settings: Settings,
    folder: Path,
    log: Path | None = None,
    share: Share | None = None,
    lock: int | None = None,
) -> Outcome:
    """Run `stage` in a new process and return its results.

    Args:
        stage: Which code to run.
        inputs: JSON form of the stage's inputs record.
        settings: The stage's settings.
        folder: Empty folder for the stage to write into.
        log: File that receives the stage's progress.
        share: What the stage may use of this machine; all of it, unless told otherwise.
        lock: Descriptor by which the new process holds the run's folder, too.

    Raises:
        AmmdError: What the stage raised, in its own class; a crash, a kill or an unexpected exception in the
            class that the stage table names.
        KeyboardInterrupt: Ctrl-C; the child and all it started have ended by then.
    """
    share = share or Share()
    with scratch_folder() as desk:
        answer = desk / "answer.json"
        job = desk / "job.json"
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
                "event_log": str(log) if log else None,
                "cpus": share.cpus,
            },
        )
        count = getattr(settings, "processes", 1) if stage.shared else 1
        # -P: a file in the current folder must not stand in for a library.
        before = read_energy()
        ended = run_processes(
            [sys.executable, "-P", "-m", "ammd.pipeline.worker", str(job)],
            count=count,
            held=() if lock is None else (lock,),
            of_stage=stage.environment,
            share=share,
        )
        # A stage with neighbours is not who used the processor's energy.
        joules = None if share.cpus else joules_between(before, read_energy())
        document = json.loads(answer.read_text(encoding="utf-8")) if answer.is_file() else None
        if document is None and ended.returncode in _NO_ROOM:
            raise disk_full(folder, doing=f"stage `{stage.name}` was at work")
    # Of several processes, what the others say of a killed one is only that it is gone.
    if document is None or (ended.was_killed and count > 1 and "error" in document):
        raise _death(stage, ended)
    if "error" in document:
        raise _revive(stage, document["error"])
    return Outcome(
        results=document["results"],
        seconds=ended.seconds,
        cpu_seconds=ended.cpu_seconds,
        peak_rss_bytes=ended.peak_rss_bytes,
        joules=joules,
    )


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


def _death(stage: Stage, ended: Ended) -> AmmdError:
    kind: type[AmmdError] = getattr(ammd.errors, stage.error)
    returncode = ended.returncode
    peak = f"{ended.peak_rss_bytes / 2**30:.1f} GiB"
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
