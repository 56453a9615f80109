"""The history of all runs: what each was made from and with, what came out, and what it cost.

All of it is read from the runs' folders, which are the truth. A run is recorded when it begins and ends; `refresh`
reads in what was missed: runs of an older version, copied or killed ones, all of them where the file was lost. Folders
that are gone stay known.
"""

from __future__ import annotations

import json
import logging
import math
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from pathlib import Path

from ammd.errors import AmmdError

from .history_file import UnwritableHistoryError, open_history, transaction
from .run_facts import Value, read_facts
from .run_folder import RECIPE_NAME, list_candidates, run_name
from .run_session import Session, last_session

log = logging.getLogger("ammd.pipeline")
_READ_AT_ONCE = 100  # runs between two transactions
_INTEGERS = range(-(1 << 63), 1 << 63)  # that SQLite can hold

_SET_RUN = """
INSERT INTO runs (run, state, started, ended, stage, message, exit_code, folder_ns) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (run) DO UPDATE SET state = excluded.state, started = excluded.started, ended = excluded.ended,
    stage = excluded.stage, message = excluded.message, exit_code = excluded.exit_code,
    folder_ns = excluded.folder_ns, pruned = NULL
"""
_DROP_FACTS = """
DELETE FROM facts WHERE run = (SELECT id FROM runs WHERE run = ?) AND key IN (SELECT id FROM keys)
"""
_SET_FACT = """
INSERT INTO facts (key, run, value) VALUES (
    (SELECT id FROM keys WHERE key = ?), (SELECT id FROM runs WHERE run = ?), ?
)
"""


def record_begin(folder: Path) -> None:
    """Record that the run in `folder` has begun; one that cannot be recorded now is read in later.

    Raises:
        ArtifactError: The history is damaged or of a newer version.
    """
    try:
        _record(folder)
    except UnwritableHistoryError as exc:
        log.warning("the history misses this run for now: %s", exc)


def record_end(folder: Path) -> None:
    """Record how the run in `folder` has ended. Whatever the history may lack, the run has all of it."""
    try:
        _record(folder)
    except AmmdError as exc:
        log.warning("the history misses the end of this run for now: %s", exc)


def refresh(connection: sqlite3.Connection, runs_dir: Path) -> None:
    """Bring the history in line with the folders."""
    rows = connection.execute("SELECT run, folder_ns, state = 'running' FROM runs").fetchall()
    known: dict[str, int | None] = {run: folder_ns for run, folder_ns, _ in rows}
    running = {run for run, _, is_running in rows if is_running}  # and may have been killed
    present = dict(list_candidates(runs_dir))
    changed = [run for run, folder_ns in present.items() if known.get(run) != folder_ns or run in running]
    changed = [run for run in changed if run in known or (runs_dir / run / RECIPE_NAME).is_file()]
    if len(changed) > _READ_AT_ONCE:
        log.info("reading %d runs into the history …", len(changed))
    for start in range(0, len(changed), _READ_AT_ONCE):
        read = [_read(runs_dir / run) for run in changed[start : start + _READ_AT_ONCE]]
        with transaction(connection):
            for entry in filter(None, read):
                _write(connection, *entry)
    missing = [(run,) for run, folder_ns in known.items() if folder_ns is not None and run not in present]
    if missing:
        with transaction(connection):
            connection.executemany("UPDATE runs SET folder_ns = NULL WHERE run = ?", missing)


def mark_pruned(connection: sqlite3.Connection, runs: Sequence[str]) -> None:
    """Record that the folders of these runs were removed on purpose."""
    with transaction(connection):
        connection.executemany(
            "UPDATE runs SET folder_ns = NULL, pruned = ? WHERE run = ?", [(time.time(), run) for run in runs]
        )


_Entry = tuple[str, int, Session, dict[str, Value]]


def _record(folder: Path) -> None:
    entry = _read(folder)
    if entry is None:
        return
    with open_history(folder.parent.parent) as connection, transaction(connection):
        _write(connection, *entry)


def _read(folder: Path) -> _Entry | None:
    """Return what a run's folder tells, and the time of its last change before it was read; None if it is gone.

    Files of another form than ours, which somebody else has written, tell nothing.
    """
    try:
        folder_ns = folder.stat().st_mtime_ns
        session = last_session(folder)
    except OSError:
        return None
    try:
        facts = read_facts(folder)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        facts = {}
    return run_name(folder), folder_ns, session, facts


def _write(
    connection: sqlite3.Connection, run: str, folder_ns: int, session: Session, facts: Mapping[str, Value]
) -> None:
    connection.execute(_SET_RUN, (run, *map(_stored, astuple(session)), folder_ns))
    connection.executemany("INSERT OR IGNORE INTO keys (key) VALUES (?)", [(key,) for key in facts])
    connection.execute(_DROP_FACTS, (run,))
    connection.executemany(_SET_FACT, [(key, run, _stored(value)) for key, value in facts.items()])


def _stored(value: Value | None) -> str | int | float | bytes | None:
    """Return what SQLite keeps: lists as JSON in bytes, by which they are told from text."""
    if isinstance(value, list):
        return json.dumps(value, ensure_ascii=False).encode(errors="replace")
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return value if value in _INTEGERS else str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return None if value is None else str(value).encode(errors="replace").decode()
