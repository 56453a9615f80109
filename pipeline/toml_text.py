"""TOML as text: the little that the standard library lacks, which is writing it and finding a key's line.

`tomllib` reads only. A recipe holds strings, numbers, booleans, lists of these, and tables, so that is all
that is written here; a value of None has no form in TOML and is left out.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from typing import Any

_HEADER = re.compile(r"^\s*\[\s*([A-Za-z0-9_.-]+)\s*\]\s*(?:#.*)?$")
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_KEY = re.compile(r"^\s*([A-Za-z0-9_.-]+)\s*=")


def write_toml(document: Mapping[str, Any]) -> str:
    """Return `document` as TOML: plain keys first, then one `[section]` for each table.

    Raises:
        TypeError: A value is of a type that no recipe holds.
    """
    return "\n".join(_table_lines(document, ())).strip("\n") + "\n"


def parse_value(text: str) -> Any:
    """Return `text` read as a TOML value; text that is none stands for itself, so strings may go bare."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, KeyError, RecursionError):
        return text


def find_line(text: str, path: tuple[str, ...]) -> int | None:
    """Return the 1-based line on which `path` is set or its section opens, or None.

    Reads `[a.b]` headers and `key =` lines, which is how recipes are written; a key inside an inline table
    gets the line of that table.
    """
    best: tuple[int, int] | None = None  # depth of the match, line
    section: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.match(line):
            section = tuple(header[1].split("."))
            found = section
        elif key := _KEY.match(line):
            found = section + tuple(key[1].split("."))
        else:
            continue
        if path[: len(found)] == found and (best is None or len(found) > best[0]):
            best = len(found), number
    return None if best is None else best[1]


def _table_lines(table: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    values = {key: value for key, value in table.items() if value is not None}
    plain = [
        f"{_key(key)} = {_value(value)}" for key, value in values.items() if not isinstance(value, Mapping)
    ]
    lines = ["", f"[{'.'.join(map(_key, path))}]"] if path and (plain or not values) else []
    lines += plain
    for key, value in values.items():
        if isinstance(value, Mapping):
            lines += _table_lines(value, (*path, key))
    return lines


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else _value(key)


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        # JSON's escapes are TOML's, but for DEL, which JSON leaves as it is.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return f"[{', '.join(_value(item) for item in value)}]"
    raise TypeError(f"a recipe cannot hold a value of type {type(value).__name__}")
