"""Rows of a benchmark as text: JSON lines, CSV, a Markdown table, SQL for sqlite3.

JSON lines, CSV and SQL have every column under its name. The Markdown table is read by people: as llama-bench's, it
has few columns and shows units.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .llama_bench_rows import COLUMNS, SAMPLES

TABLE = "llama_bench"  # llama-bench's own name
_SQL_TYPES = {str: "TEXT", int: "INTEGER", float: "REAL", bool: "INTEGER"}
_MIB = 2**20


def as_jsonl(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return one JSON object a line, samples included."""
    keys = (*COLUMNS, *SAMPLES)
    return "".join(json.dumps({key: row[key] for key in keys}, ensure_ascii=False) + "\n" for row in rows)


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a head and one line a row; null and the empty text look the same."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(COLUMNS), extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_sql(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return statements that make the table where it is not there and add the rows."""
    return sql_table(TABLE, COLUMNS, rows)


def sql_table(table: str, kinds: Mapping[str, type], rows: Sequence[Mapping[str, Any]]) -> str:
    """Return statements that make `table` where it is not there and add the rows."""
    columns = ",\n".join(f"  {name} {_SQL_TYPES[kind]}" for name, kind in kinds.items())
    names = ", ".join(kinds)
    lines = [f"CREATE TABLE IF NOT EXISTS {table} (\n{columns}\n);\n\n"]
    for row in rows:
        values = ", ".join(_sql_value(row[name]) for name in kinds)
        lines.append(f"INSERT INTO {table} ({names}) VALUES ({values});\n")
    return "".join(lines)


def as_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a table for people; what no row has is left out."""
    table = [{title: show(row) for title, show in _SHOWN.items()} for row in rows]
    titles = [title for title in _SHOWN if any(row[title] for row in table)]
    sides = [":--" if title in _TEXT else "--:" for title in titles]
    lines = [titles, sides, *([row[title] for title in titles] for row in table)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _sql_value(value: object) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return repr(int(value) if isinstance(value, bool) else value)


def _number(key: str, form: str, *, per_unit: float = 1) -> Callable[[Mapping[str, Any]], str]:
    def show(row: Mapping[str, Any]) -> str:
        value = row[key]
        return format(value / per_unit, form) if isinstance(value, int | float) else ""

    return show


def _rate(row: Mapping[str, Any]) -> str:
    return f"{row['avg_ts']:.2f} ± {row['stddev_ts']:.2f}"


def _median(row: Mapping[str, Any]) -> str:
    return f"{row['median_ts']:.2f} ({row['median_ts_low']:.2f} to {row['median_ts_high']:.2f})"


def _word(key: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda row: str(row[key] or "").replace("|", "\\|")


_TEXT = ("model", "engine", "test", "validity", "proofs")
_SHOWN: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "model": _word("model_type"),
    "size MiB": _number("file_bytes", ".2f", per_unit=_MIB),
    "params M": _number("model_n_params", ".2f", per_unit=1e6),
    "backend": _word("backends"),
    "engine": _word("engine"),
    "threads": _number("n_threads", ".0f"),
    "test": _word("test"),
    "t/s": _rate,
    "median t/s (95 %)": _median,
    "TTFT ms": _number("ttft_s", ".1f", per_unit=1e-3),
    "p50 ms": _number("token_p50_s", ".2f", per_unit=1e-3),
    "p90 ms": _number("token_p90_s", ".2f", per_unit=1e-3),
    "p95 ms": _number("token_p95_s", ".2f", per_unit=1e-3),
    "p99 ms": _number("token_p99_s", ".2f", per_unit=1e-3),
    "peak RSS MiB": _number("peak_rss_bytes", ".0f", per_unit=_MIB),
    "validity": _word("validity"),
    "KL nats": _number("kl_nats", ".2g"),
    "proofs": _word("proofs"),
}
FORMATS: Mapping[str, Callable[[Sequence[Mapping[str, Any]]], str]] = {
    "jsonl": as_jsonl,
    "csv": as_csv,
    "md": as_markdown,
    "sql": as_sql,
}
