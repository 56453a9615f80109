"""What `ammd runs` prints: runs of the history as one document."""

from __future__ import annotations

import datetime
import logging
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .history import refresh
from .history_file import UnwritableHistoryError, open_copy, open_history
from .history_query import TIMES, full_key, select_runs

log = logging.getLogger("ammd.pipeline")
LIST_SCHEMA = "ammd.runs/2"
DEFAULT_COLUMNS = (
    "stages",
    "best.file",
    "best.kl_to_teacher_nats",
    "best.rouge_l",
    "best.decode_tokens_per_s",
    "best.bytes",
    "costs.seconds",
    "bytes",
)


def list_runs(
    runs_dir: Path,
    *,
    filters: Sequence[str] = (),
    sort: str | None = None,
    reverse: bool = False,
    limit: int | None = None,
    columns: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Return a document with one row for each run of the history below `runs_dir`, newest first.

    Args:
        runs_dir: Folder of all runs.
        filters: `KEY OPERATOR VALUE` each; a run has to pass all.
        sort: Another key to sort by, upwards.
        reverse: The other way round.
        limit: At most so many rows.
        columns: Keys of which each row tells; None takes those of the table.

    Raises:
        RecipeError: A filter is malformed, or a key is that of no run.
        ArtifactError: The history is damaged or of a newer version.
    """

    def ask(connection: sqlite3.Connection) -> dict[str, Any]:
        refresh(connection, runs_dir)
        keys = DEFAULT_COLUMNS if columns is None else [full_key(connection, key) for key in columns]
        chosen = select_runs(
            connection, filters=filters, sort=sort, reverse=reverse, limit=limit, columns=keys
        )
        return {
            "schema": LIST_SCHEMA,
            "path": str(runs_dir.resolve()),
            "total": chosen.total,
            "columns": list(keys),
            "runs": [_row(row, runs_dir) for row in chosen.rows],
        }

    try:
        with open_history(runs_dir) as connection:
            return ask(connection)
    except UnwritableHistoryError as exc:
        log.debug("%s", exc)  # somebody else's runs, or a full disk: looking needs no writing
    with open_copy(runs_dir) as connection:
        return ask(connection)


def _row(row: dict[str, Any], runs_dir: Path) -> dict[str, Any]:
    times = {key: _iso(row[key]) for key in TIMES}
    return {"run": row["run"], "path": str(runs_dir.resolve() / row["run"]), **row, **times}


def _iso(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    try:
        return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except OSError as exc:  # what Python says of some numbers that are no time
        raise ValueError(f"{seconds} is no time") from exc
