"""The state of a run as its log tells it: what `ammd watch` shows and prints.

Only files of the run's folder are read, so that it works from another machine over a shared folder. Durations are
differences of the log's own times; the watching machine's clock is not compared with them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import ammd.errors
from ammd.artifact import check_relative
from ammd.errors import INTERRUPTED, ArtifactError, EngineError
from ammd.event_log import Event, EventReader

from .bench_cells import cells_of_run, check_measured
from .run_folder import SUMMARY_NAME
from .run_log import LOG_NAME, is_gone
from .runs import read_summary
from .stages import STAGES

WATCH_SCHEMA = "ammd.watch/1"
SILENT_S = 20.0  # without a sign of life, of which there is one every two seconds
DEAD_S = 120.0  # the same, of a process on another machine, which cannot be asked for
_TAIL_BYTES = 1 << 16  # of the curves: about 150 steps
_CURVES_NAME = "curves.jsonl"


class RunState(Enum):
    """How a run is."""

    RUNNING = "running"
    SILENT = "silent"  # no sign of life for a while
    FINISHED = "finished"
    FAILED = "failed"
    INTERRUPTED = "interrupted"
    DIED = "died"  # its process is gone and did not say how it ended

    @property
    def has_ended(self) -> bool:
        """Whether nothing more comes."""
        return self not in (RunState.RUNNING, RunState.SILENT)


@dataclass(slots=True, kw_only=True)
class StageView:
    """One stage."""

    stage: str
    state: str = "waiting"  # then `running`, at last `done`, `found` (there already), or `cut off`
    seconds: float | None = None
    peak_rss_bytes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressView:
    """What the running stage says of itself."""

    label: str
    done: float
    total: float
    seconds: float
    left_s: float | None  # None before anything is done
    note: str


@dataclass(slots=True, kw_only=True)
class RunView:
    """A session of a run: all that its log has said so far."""

    folder: Path
    run: str = ""
    process: dict[str, Any] = field(default_factory=dict)
    stages: dict[str, StageView] = field(default_factory=dict)
    began: float = 0.0  # by the clock of the machine that runs it, like all times here
    stage_began: float = 0.0
    last: float = 0.0
    staging: str = ""
    progress: Event | None = None
    rss_bytes: list[int] = field(default_factory=list)  # of the running stage
    end: Event | None = None

    @property
    def running(self) -> StageView | None:
        """The stage that is being made."""
        return next((stage for stage in self.stages.values() if stage.state in ("running", "cut off")), None)

    def take(self, event: Event) -> None:
        """Go on by one event."""
        self.last = event["time"]
        match event:
            case {
                "event": "run_started",
                "run": str(run),
                "stages": [*stages],
                "process": {"pid": int(), "began": float(), "host": str(), "ids_of": str()} as process,
            }:
                self.run, self.process = run, process
                self.stages = {name: StageView(stage=name) for name in stages}
                self.began, self.progress, self.end, self.staging = event["time"], None, None, ""
                self.rss_bytes = []
            case {"event": "stage_started", "stage": name, "folder": folder} if name in self.stages:
                self.stages[name].state = "running"
                self.stage_began, self.staging = event["time"], folder
                self.rss_bytes, self.progress = [], None
            case {"event": "stage_found" | "stage_finished", "stage": name} if name in self.stages:
                stage = self.stages[name]
                stage.state = "found" if event["event"] == "stage_found" else "done"
                stage.seconds, stage.peak_rss_bytes = event.get("seconds"), event.get("peak_rss_bytes")
                self.progress = None
            case {
                "event": "progress",
                "label": str(),
                "done": int() | float(),
                "total": int() | float(),
                "first": int() | float(),
                "seconds": int() | float(),
                "note": str(),
            }:
                self.progress = event
            case {"event": "memory", "rss_bytes": int(rss_bytes)}:
                self.rss_bytes.append(rss_bytes)
            case {"event": "run_ended", "exit_code": int()}:
                self.end = event


class RunWatch:
    """Follows the log of one run."""

    def __init__(self, folder: Path) -> None:
        """Watch the run in `folder`.

        Raises:
            ArtifactError: It has no log.
        """
        if not (folder / LOG_NAME).is_file():
            raise ArtifactError(
                f"run `{folder}` has no `{LOG_NAME}`",
                hint="runs write one from their next `ammd run` on",
                path=str(folder),
            )
        self._reader = EventReader(folder / LOG_NAME)
        self._view = RunView(folder=folder)

    def look(self, *, silent_s: float) -> tuple[RunView, RunState, bool]:
        """Return what is known now, and whether something has come since the last look.

        Args:
            silent_s: How long nothing had come before this look, by the clock of who watches.
        """
        has_news = self._read()
        gone = is_gone(self._view.process) if self._view.process else None
        if gone:
            has_news = self._read() or has_news  # it may have ended since, and have said so
        silent_s = 0.0 if has_news else silent_s
        state = _state(self._view, gone=gone, silent_s=silent_s)
        if state.has_ended and self._view.running:
            self._view.running.state = "cut off"
        return self._view, state, has_news

    def _read(self) -> bool:
        events = self._reader.read()
        for event in events:
            self._view.take(event)
        return bool(events)


def document(view: RunView, state: RunState, *, silent_s: float = 0.0) -> dict[str, Any]:
    """Return the state as one JSON document."""
    now = view.last + (0.0 if state.has_ended else silent_s)
    running = view.running
    if running:
        running.seconds = round(now - view.stage_began, 3)
    found, steps = _progress(view, now=now), latest_steps(view)
    return {
        "schema": WATCH_SCHEMA,
        "run": view.run,
        "path": str(view.folder.resolve()),
        "state": state.value,
        "exit_code": exit_code(view, state),
        "error": view.end.get("error", "") if view.end else "",
        "hint": view.end.get("hint", "") if view.end else "",
        "seconds": round(now - view.began, 3),
        "silent_s": round(silent_s, 3),
        "stage": running.stage if running else None,
        "stages": [asdict(stage) for stage in view.stages.values()],
        "progress": asdict(found) if found else None,
        "training": steps[-1] if steps else None,
        "rss_bytes": view.rss_bytes[-1] if view.rss_bytes and running else None,
        "peak_rss_bytes": max(view.rss_bytes) if view.rss_bytes and running else None,
    }


def exit_code(view: RunView, state: RunState) -> int | None:
    """Return what `ammd run` has ended with, or would have had it not died; None before that."""
    if not state.has_ended:
        return None
    if state is RunState.DIED:
        stage = view.running
        kind = getattr(ammd.errors, STAGES[stage.stage].error) if stage and stage.stage in STAGES else None
        return kind.exit_code if kind else 1
    code: int = view.end["exit_code"] if view.end else 1
    return code or _judgement(view)


def latest_steps(view: RunView) -> list[dict[str, Any]]:
    """Return the last steps of the training that the running stage has logged, about 150 of them, oldest first."""
    if view.running is None or not view.staging:
        return []
    try:
        with (view.folder / check_relative(view.staging) / _CURVES_NAME).open("rb") as stream:
            start = max(0, stream.seek(0, os.SEEK_END) - _TAIL_BYTES)
            stream.seek(start)
            lines = stream.read().split(b"\n")
    except (OSError, ArtifactError):
        return []
    # The first may lack its beginning, the last its end.
    return [row for line in lines[1 if start else 0 : -1] if (row := _parse(line))]


def _parse(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}


def _state(view: RunView, *, gone: bool | None, silent_s: float) -> RunState:
    if view.end:
        code = view.end["exit_code"]
        if code == 0:
            return RunState.FINISHED
        return RunState.INTERRUPTED if code == INTERRUPTED else RunState.FAILED
    if gone or (gone is None and silent_s > DEAD_S):
        return RunState.DIED
    return RunState.SILENT if silent_s > SILENT_S else RunState.RUNNING


def _progress(view: RunView, *, now: float) -> ProgressView | None:
    event = view.progress
    if event is None or view.running is None:
        return None
    done, seconds = event["done"] - event["first"], event["seconds"]
    ahead = event["total"] - event["done"]
    left = max(0.0, ahead * seconds / done - (now - event["time"])) if done > 0 else None
    return ProgressView(
        label=event["label"],
        done=event["done"],
        total=event["total"],
        seconds=seconds,
        left_s=None if left is None else round(left, 1),
        note=event["note"],
    )


def _judgement(view: RunView) -> int:
    """Return the code that the numbers of a whole run give it once all stages are there; 0 of a part of one."""
    whole = all(stage.state in ("done", "found") for stage in view.stages.values())
    if not whole or not (view.folder / SUMMARY_NAME).is_file():
        return 0
    summary: Mapping[str, Any] = read_summary(view.folder)
    try:
        check_measured(cells_of_run(summary))
    except EngineError as exc:
        return exc.exit_code
    missed = (summary.get("budget") or {}).get("met") is False
    return ammd.errors.BudgetExceededError.exit_code if missed else 0
