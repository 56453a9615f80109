"""Pieces of Markdown that the sections of docs/results.md have in common."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def table(lines: Iterable[Sequence[str]]) -> str:
    """Return a table; the first line is its head."""
    head, *rows = lines
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *rows])


def difference(row: Mapping[str, Any], *, digits: int, scale: float = 1.0) -> str:
    """Return what two methods differ by, with its interval; in bold if that is without 0."""
    number, low, high = (f"{scale * row[key]:+.{digits}f}" for key in ("difference", "low", "high"))
    text = f"{number} ({low} to {high})"
    return f"**{text}**" if row["low"] > 0 or row["high"] < 0 else text
