"""What `ammd bench --profile` finds, as people read it: a table of what was measured, and one of what is projected."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_MIB = 2**20


def profile_tables(document: Mapping[str, Any]) -> list[tuple[str, list[dict[str, str]]]]:
    """Return both tables as people read them, each with its title; one without rows is left out."""
    name = document["profile"]["name"]
    tables = [
        (
            f"{name}: measured on this machine under the app's limits",
            [_limits_row(row) for row in document["under_limits"]],
        ),
        (f"{name}: projected, not measured; bursts", [_projected_row(row) for row in document["projected"]]),
    ]
    return [(title, rows) for title, rows in tables if rows]


def _limits_row(row: Mapping[str, Any]) -> dict[str, str]:
    return {
        "file": row["file"],
        "threads": str(row["threads"]),
        "context": str(row["context_tokens"]),
        "limit MiB": f"{row['memory_limit_bytes'] / _MIB:.0f} ({row['memory_limit_by']})",
        "peak RSS MiB": _number(row["peak_rss_bytes"], ".0f", per_unit=_MIB),
        "load s": _number(row["load_s"], ".2f"),
        "from disk MiB": _number(row["read_from_disk_bytes"], ".0f", per_unit=_MIB),
        "TTFT ms": _number(row["ttft_s"], ".0f", per_unit=1e-3),
        "prefill t/s": _number(row["prefill_tokens_per_s"], ".0f"),
        "decode t/s": _number(row["decode_tokens_per_s"], ".1f"),
        "": "passes" if row["passes"] else f"fails: {row['broken']}",
    }


def _projected_row(row: Mapping[str, Any]) -> dict[str, str]:
    rate, low, high = (row[name] for name in ("projected_tokens_per_s", "projected_low", "projected_high"))
    return {
        "file": row["file"],
        "projected": row["projected_metric"].partition("_")[0],
        "t/s, 80 % interval": f"{_rate(low)} to {_rate(high)}",
        "middle": _rate(rate),
        "error": f"x{low / rate:.2f} to x{high / rate:.2f}",
        "MB a token": f"{row['weight_bytes_per_token'] / 1e6:.1f}",
        "from": row["projected_from"],
    }


def _rate(value: float) -> str:
    """Return a rate with no more digits than it deserves."""
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def _number(value: float | None, form: str, *, per_unit: float = 1) -> str:
    return "–" if value is None else format(value / per_unit, form)
