"""Questions to the history: which runs, in which order, what of them.

A filter is KEY OPERATOR VALUE. Keys are those of `run_facts` and the columns of a run itself; a key may be cut short
within its last part where that is the beginning of one key only, or of several of which the tables show one
(`metrics.student.kl`; the first, if they show more). Operators are `=`, `!=`, `~` (contains, whatever the case), `!~`,
and `<`, `<=`, `>`, `>=` for numbers and times. What users write reaches SQLite as parameters alone.
"""

from __future__ import annotations

import datetime
import difflib
import json
import re
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ammd.errors import RecipeError

from .columns import COLUMNS

_STATE = """CASE WHEN runs.folder_ns IS NOT NULL THEN runs.state
    WHEN runs.pruned IS NULL THEN 'gone' ELSE 'pruned' END"""
# Key -> SQL of what the history knows of a run beside its facts.
_OF_RUN = {
    "run": "runs.run",
    "state": _STATE,
    "started": "runs.started",
    "ended": "runs.ended",
    "pruned": "runs.pruned",
    "stage": "runs.stage",
    "message": "runs.message",
    "exit_code": "runs.exit_code",
}
TIMES = ("started", "ended", "pruned")
_FACT = "(SELECT value FROM facts WHERE facts.run = runs.id AND facts.key = ?)"
_FILTER = re.compile(r"\s*([^\s=!<>~]+)\s*(!=|!~|<=|>=|=|~|<|>)\s*(.*?)\s*", re.DOTALL)
_IS_NUMBER = "typeof({x}) IN ('integer', 'real')"
_ANY_CASE = "instr(lower(CAST({x} AS TEXT)), lower(?)) > 0"
_MANY = 6  # keys that a message lists


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Some of the runs that were asked for."""

    total: int  # that the filters leave
    rows: list[dict[str, Any]]  # each with all of `_OF_RUN` and the columns


@dataclass(frozen=True, slots=True, kw_only=True)
class _Term:
    """A piece of SQL with what stands for its question marks."""

    sql: str
    values: tuple[Any, ...] = ()


def select_runs(
    connection: sqlite3.Connection,
    *,
    filters: Sequence[str] = (),
    sort: str | None = None,
    reverse: bool = False,
    limit: int | None = None,
    columns: Sequence[str] = (),
) -> Selection:
    """Return the runs that pass all filters.

    Args:
        connection: To a history.
        filters: `KEY OPERATOR VALUE` each.
        sort: By which key, upwards, runs without it last; None has the newest first.
        reverse: The other way round, runs without it still last.
        limit: At most so many rows.
        columns: Keys of facts that each row has; None stands for what a run lacks.

    Raises:
        RecipeError: A filter is malformed, or a key is that of no run.
    """
    keys = dict(connection.execute("SELECT key, id FROM keys"))
    tests = [_test(text, keys) for text in filters]
    where = " AND ".join(test.sql for test in tests) or "1"
    given = [value for test in tests for value in test.values]
    order = _term(sort, keys) if sort else _Term(sql=_OF_RUN["started"])
    downwards = reverse if sort else not reverse
    shown = [_term(key, keys, is_known=True) for key in columns]
    names = [*_OF_RUN, *columns]
    found = connection.execute(
        f"""
        SELECT {", ".join([*_OF_RUN.values(), *(term.sql for term in shown)])} FROM runs WHERE {where}
        ORDER BY {order.sql} IS NULL, {order.sql} {"DESC" if downwards else ""}, runs.id LIMIT ?
        """,
        [
            *(value for term in shown for value in term.values),
            *given,
            *order.values * 2,
            -1 if limit is None else limit,
        ],
    )
    rows = [dict(zip(names, map(_loaded, row), strict=True)) for row in found]
    (total,) = connection.execute(f"SELECT count(*) FROM runs WHERE {where}", given).fetchone()
    return Selection(total=total, rows=rows)


def full_key(connection: sqlite3.Connection, key: str) -> str:
    """Return the key of which `key` may be the beginning.

    Raises:
        RecipeError: No run has such a key, or it is the beginning of several.
    """
    return _resolve(key, dict(connection.execute("SELECT key, id FROM keys")))


def _test(text: str, keys: dict[str, int]) -> _Term:
    """Return a filter as a condition that a run without the key fails, but for the negated ones."""
    matched = _FILTER.fullmatch(text)
    if matched is None:
        raise RecipeError(
            f"filter `{text}` is not of the form KEY OPERATOR VALUE",
            hint="operators are = != ~ !~ < <= > >=, as in `state=finished` or `metrics.student.kl<0.6`",
        )
    key, operator, value = matched.groups()
    key = _resolve(key, keys)
    test = _comparison(key, {"!=": "=", "!~": "~"}.get(operator, operator), value, text)
    if key in _OF_RUN:
        found = _Term(sql=f"ifnull({test.sql.format(x=_OF_RUN[key])}, 0)", values=test.values)
    else:
        found = _Term(
            sql=f"""EXISTS (SELECT 1 FROM facts WHERE facts.run = runs.id AND facts.key = ?
                AND ({test.sql.format(x="facts.value")}))""",
            values=(keys.get(key), *test.values),
        )
    return _Term(sql=f"NOT {found.sql}", values=found.values) if operator.startswith("!") else found


def _comparison(key: str, operator: str, value: str, text: str) -> _Term:
    """Return a comparison with `{x}` in place of what is compared."""
    if operator == "~":
        return _Term(sql=_ANY_CASE, values=(value,))
    number = _number(key, value)
    if operator == "=":
        same_text = "CAST({x} AS TEXT) = ?"
        if number is None:
            return _Term(sql=same_text, values=(value,))
        return _Term(sql=f"({_IS_NUMBER} AND {{x}} = ? OR {same_text})", values=(number, value))
    if number is None:
        what = "a time such as 2026-11-26" if key in TIMES else "a number"
        raise RecipeError(f"filter `{text}`: `{operator}` needs {what}, not `{value}`")
    return _Term(sql=f"({_IS_NUMBER} AND {{x}} {operator} ?)", values=(number,))


def _number(key: str, value: str) -> float | None:
    try:
        if key in TIMES:
            return datetime.datetime.fromisoformat(value).timestamp()
        return float(value)
    except (ValueError, OverflowError, OSError):
        return None


def _term(key: str, keys: dict[str, int], *, is_known: bool = False) -> _Term:
    name = key if is_known else _resolve(key, keys)
    return _Term(sql=_OF_RUN[name]) if name in _OF_RUN else _Term(sql=_FACT, values=(keys.get(name),))


def _resolve(key: str, keys: dict[str, int]) -> str:
    everything = [*_OF_RUN, *keys]
    if key in everything or not keys:  # no run has been recorded: every question has an answer, none
        return key
    begun = [name for name in everything if name.startswith(key) and "." not in name[len(key) :]]
    shown = [name for column in COLUMNS for name in begun if name.endswith(f".{column.key}")]
    if len(begun) == 1 or shown:
        return (shown or begun)[0]
    if begun:
        raise RecipeError(f"`{key}` is the beginning of several keys", hint=f"there are {_listed(begun)}")
    ends = [name for name in everything if name.endswith(f".{key}")]
    close = ends or difflib.get_close_matches(key, everything, n=3, cutoff=0.6)
    hint = f"nearest: {_listed(close)}" if close else f"`--columns` and filters know {_listed(everything)}"
    raise RecipeError(f"no run has a key `{key}`", hint=hint)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MANY} more" if len(names) > _MANY else ""
    return ", ".join(f"`{name}`" for name in names[:_MANY]) + more


def _loaded(value: Any) -> Any:
    """Return what was stored; lists are JSON in bytes."""
    return json.loads(value) if isinstance(value, bytes) else value
