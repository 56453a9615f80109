"""Opening a model cold and warm: each pair drops its files from the page cache, opens it, and opens it once more.

The libraries of the engine stay in the cache; cold are the model's files alone. A time is a cold one only if the child
saw that at most `COLD_SHARE` of the files was in memory before it opened them; else there is none, and a note says why.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

COLD_SHARE = 0.01  # a page that somebody looked at meanwhile


def measure_loads(
    *, pairs: int, drop: Callable[[], bool], open_once: Callable[[], Mapping[str, Any]]
) -> dict[str, Any]:
    """Return the medians of some cold and warm openings, as flat parts of a row.

    Args:
        pairs: How often the model is opened cold and then warm.
        drop: Asks the kernel to drop its files from the page cache; False where it cannot be asked.
        open_once: Opens it in a fresh process and gives what `load_child` does.

    Raises:
        EngineError: The model cannot be loaded or run.
    """
    cold, warm, can_ask = [], [], True
    for _ in range(pairs):
        can_ask = drop()
        cold.append(open_once())
        warm.append(open_once())
    note = _doubt(cold, can_ask=can_ask)
    return {
        **_summary(cold, "cold", times=note is None),
        **_summary(warm, "warm", times=True),
        "load_note": note,
    }


def _doubt(cold: Sequence[Mapping[str, Any]], *, can_ask: bool) -> str | None:
    """Return why the first openings of the pairs were not cold; None if they were."""
    if not can_ask:
        return "this system drops no files from its page cache"
    shares = [one["resident_share"] for one in cold]
    if any(share is None for share in shares):
        return "this system does not tell what is in its page cache"
    if max(shares) > COLD_SHARE:
        return f"{max(shares):.0%} of the files stayed in the page cache"
    return None


def _summary(openings: Sequence[Mapping[str, Any]], kind: str, *, times: bool) -> dict[str, Any]:
    """Return medians; of the shares in memory the one that proves least."""
    shares = sorted(one["resident_share"] for one in openings if one["resident_share"] is not None)
    weakest = shares[-1 if kind == "cold" else 0] if shares else None
    seconds = {
        name: statistics.median(one[name] for one in openings) if times else None
        for name in ("load_s", "first_token_s")
    }
    return {
        f"load_{kind}_s": seconds["load_s"],
        f"first_token_{kind}_s": seconds["first_token_s"],
        f"load_{kind}_resident_share": weakest,
        f"load_{kind}_major_faults": _typical([one["major_faults"] for one in openings]),
        f"load_{kind}_read_bytes": _typical([one["read_bytes"] for one in openings]),
    }


def _typical(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return statistics.median_low(known) if known else None
