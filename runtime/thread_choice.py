"""How many threads to measure, and which of them decoded fastest.

More threads than physical cores seldom help: two hyper-threads share one core's arithmetic, and threads beyond the
cgroup's quota are stopped in the middle of a token while the others spin and wait for them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

log = logging.getLogger("ammd.runtime")
_EVERY_COUNT = 8  # up to so many cores each count is tried, as phones' fast cores are few


def thread_counts(asked: Sequence[int] | str, *, available: int, physical: int) -> tuple[int, ...]:
    """Return the counts to measure, ascending.

    Args:
        asked: Counts, of which 0 means all that are available, or `sweep`.
        available: Cores that this process may use: affinity, bounded by the quota. More are never measured.
        physical: Of these, cores that share nothing.
    """
    if isinstance(asked, str):
        return _sweep(min(available, physical))
    for count in asked:
        if count > available:
            log.warning(
                "%d threads are more than the %d cores that this process may use: %d are measured",
                count,
                available,
                available,
            )
    counts = tuple(sorted({min(count or available, available) for count in asked}))
    if counts[-1] > physical:
        log.warning(
            '%d threads share %d physical cores; `threads = "sweep"` finds the best count',
            counts[-1],
            physical,
        )
    return counts


def best_row(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Return the row that decoded fastest; None where all failed."""
    measured = [row for row in rows if row.get("decode_tokens_per_s")]
    return max(measured, key=lambda row: row["decode_tokens_per_s"], default=None)


def describe_best(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return the best thread count with its interval, and the counts whose intervals overlap it."""
    best = best_row(rows)
    if best is None:
        return None
    name = "decode_tokens_per_s"
    return {
        "threads": best["threads"],
        **{key: best[key] for key in (name, f"{name}_low", f"{name}_high")},
        "not_told_apart": [
            row["threads"]
            for row in rows
            if row is not best and row.get(f"{name}_high", 0) >= best[f"{name}_low"]
        ],
    }


def _sweep(cores: int) -> tuple[int, ...]:
    if cores <= _EVERY_COUNT:
        return tuple(range(1, cores + 1))
    counts, step = [1, 2, 4, 6, 8], 4
    while counts[-1] + step < cores:
        counts.append(counts[-1] + step)
        step = max(step, counts[-1] // 4)
    return (*counts, cores)
