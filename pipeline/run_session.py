"""How the last attempt at a run went, as the run's own folder tells: its log, its lock, its summary."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ammd.errors import INTERRUPTED
from ammd.event_log import EventReader
from ammd.folder_lock import is_locked

from .run_folder import RECIPE_NAME, SUMMARY_NAME
from .run_log import LOG_NAME


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """The last attempt. Times are Unix seconds."""

    state: str  # `running`, `finished`, `unfinished` (stages are to come), `failed` or `interrupted`
    started: float | None
    ended: float | None = None  # None while it runs, and of one that was killed
    stage: str | None = None  # this and what follows, of one that failed or was interrupted
    message: str | None = None
    exit_code: int | None = None


def last_session(folder: Path) -> Session:
    """Return how the last attempt at the run in `folder` went; a run without a log has but its files' times."""
    started = stage = end = None
    for event in EventReader(folder / LOG_NAME).read():
        match event["event"]:
            case "run_started":
                started, stage, end = float(event["time"]), None, None
            case "stage_started":
                stage = str(event.get("stage"))
            case "stage_finished":
                stage = None
            case "run_ended":
                end = event
    whole = "finished" if (folder / SUMMARY_NAME).is_file() else "unfinished"
    if started is None:
        return Session(state=whole, started=_time(folder / RECIPE_NAME), ended=_time(folder))
    if end is None:
        if is_locked(folder):
            return Session(state="running", started=started)
        if whole == "finished":  # all was there already
            return Session(state=whole, started=started)
        return Session(state="interrupted", started=started, stage=stage, message="killed")
    code, ended = end.get("exit_code"), float(end["time"])
    if not isinstance(code, int) or code == 0:
        return Session(state=whole, started=started, ended=ended)
    return Session(
        state="interrupted" if code == INTERRUPTED else "failed",
        started=started,
        ended=ended,
        stage=stage,
        message=str(end.get("error")),
        exit_code=code,
    )


def _time(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None
