"""JSONL: one JSON object a line, blank lines skipped."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from .errors import DataError


def read_objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield each object with the number of its line, from 1.

    Raises:
        DataError: The file is missing or not UTF-8 text, or a line is no JSON object (named by its number).
    """
    try:
        # Not `splitlines`: JSON allows U+2028 and the like inside a string.
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError as exc:
        raise DataError(f"no data file at `{path}`", path=str(path)) from exc
    except (OSError, UnicodeDecodeError) as exc:
        raise DataError(f"cannot read `{path}`: {exc}", path=str(path)) from exc
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield number, _parse(line, where=f"`{path}` line {number}", number=number)


def check_unicode(texts: Iterable[object], where: str, number: int) -> None:
    """Refuse halves of characters, which JSON can write and no tokenizer reads.

    Raises:
        DataError: A text holds one.
    """
    for text in texts:
        if isinstance(text, str) and any("\ud800" <= character <= "\udfff" for character in text):
            raise DataError(f"{where} holds half of a character (a lone surrogate)", line=number)


def _parse(line: str, *, where: str, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as exc:
        raise DataError(f"{where} is not JSON: {getattr(exc, 'msg', exc)}", line=number) from exc
    if not isinstance(row, dict):
        raise DataError(f"{where} is not a JSON object", line=number)
    return row
