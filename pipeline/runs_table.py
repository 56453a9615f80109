"""The list of runs on the screen."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .columns import COLUMNS, show
from .history_query import TIMES
from .stages import STAGES
from .table import build_table, escape

if TYPE_CHECKING:
    from rich.table import Table

_STYLES = {"finished": "green", "running": "cyan", "failed": "bold red", "interrupted": "yellow"}
_HEADINGS = {"best.file": "best file", "costs.seconds": "seconds", "bytes": "on disk\nMiB"}
_BY_KEY = {column.key: column for column in COLUMNS}


def runs_table(document: Mapping[str, Any]) -> Table:
    """Return one line for each run: when it began, how it ended, and the columns that were asked for."""
    columns = [key for key in document["columns"] if key not in {"run", "started", "state"}]
    table = build_table(f"runs in {document['path']}", "run", ["started", "state", *map(_heading, columns)])
    for column, key in zip(table.columns[1:], ["started", "state", *columns], strict=True):
        if any(_is_word(row.get(key)) for row in document["runs"]):
            column.justify = "left"
    for row in document["runs"]:
        cells = [escape(_shown(key, row.get(key))) for key in columns]
        table.add_row(escape(row["run"]), _shown("started", row["started"]), _state(row), *cells)
    return table


def prune_table(document: Mapping[str, Any], *, path: Path) -> Table:
    """Return one line for each run of which something is to go, and what that frees."""
    table = build_table(f"to be removed from {path}", "run", ["state", "frees\nMiB"])
    table.columns[1].justify = "left"
    for row in document["runs"]:
        table.add_row(escape(row["run"]), row["state"], f"{row['bytes'] / 2**20:,.1f}")
    table.add_section()
    table.add_row(f"{len(document['runs'])} in all", "", f"{document['freeable_bytes'] / 2**20:,.1f}")
    return table


def _state(row: Mapping[str, Any]) -> str:
    """Return the state, and of one that did not end well, where and with which exit code."""
    text: str = row["state"]
    if text in {"failed", "interrupted"} and row["stage"]:
        text += f" in {row['stage']}"
    if text.startswith("failed"):
        text += f", {row['exit_code']}"
    style = _STYLES.get(row["state"])
    return f"[{style}]{escape(text)}[/]" if style else escape(text)


def _heading(key: str) -> str:
    if key in _HEADINGS:
        return _HEADINGS[key]
    section, _, last = key.rpartition(".")
    if (column := _BY_KEY.get(last)) is None:
        return escape(key)
    title = f"{column.title}\n{column.unit}".rstrip()
    return title if section in {"", "best"} else escape(f"{section}\n{title}")


def _shown(key: str, value: Any) -> str:
    if value is None:
        return "–"
    if key == "stages":
        return f"{len(value)}/{len(STAGES)}"
    if key in TIMES:
        return datetime.datetime.fromisoformat(value).astimezone().strftime("%Y-%m-%d %H:%M")
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if not isinstance(value, int | float):
        return str(value)
    if column := _BY_KEY.get(key.rpartition(".")[2]):
        return show(value, column)
    if key.endswith("seconds"):
        return f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _is_word(value: Any) -> bool:
    return isinstance(value, str)
