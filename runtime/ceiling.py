"""How fast decoding could be at most: each token reads all weights, and the keys and values of what precedes it.

First what the architecture implies, then what the machine delivers (`bandwidth`), hence the ceiling; the measured rate
is told as a share of it. A small model whose weights lie in the cache in part may decode faster than that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .architecture import Architecture


def ceiling_of(
    row: Mapping[str, Any], architecture: Architecture, *, bandwidth_bytes_per_s: float | None
) -> dict[str, Any]:
    """Return the parts of a row that say what was to be expected; None is not known.

    Args:
        row: What was measured, or failed.
        architecture: Of its model.
        bandwidth_bytes_per_s: Of this machine with as many threads.
    """
    kv_type = str(row.get("settings", {}).get("kv_cache_type", "f32"))  # torch keeps what it computes
    context = row["prompt_tokens"] + row["decode_tokens"]
    weights = architecture.weight_bytes_per_token
    keys = architecture.kv_bytes_per_token(kv_type, context_tokens=context)
    ceiling = None
    if weights is not None and keys is not None and bandwidth_bytes_per_s:
        middle = row["prompt_tokens"] + row["decode_tokens"] / 2  # tokens that precede one, on average
        ceiling = bandwidth_bytes_per_s / (weights + keys * middle)
    rate = row.get("decode_tokens_per_s")
    return {
        "weight_bytes_per_token": weights,
        "kv_bytes_per_token": None if keys is None else round(keys),
        "kv_cache_bytes": None if keys is None else round(keys * context),
        "bandwidth_bytes_per_s": bandwidth_bytes_per_s,
        "decode_ceiling_tokens_per_s": ceiling,
        "decode_of_ceiling": rate / ceiling if rate and ceiling else None,
    }
