"""How fast this machine reads memory: the ceiling of decoding, in which every weight is read once a token.

Each thread multiplies its share of two arrays far larger than the last-level cache, x · y, with numpy's BLAS: a stream
that is read and never written, with two multiplications and additions for eight bytes, which any CPU does faster than
its memory delivers. The median of several passes after one that is thrown away. It is no theoretical peak, and a model
that lies in the cache in part may read faster. Runs in a child.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ammd.machine import available_memory_bytes

_LEAST_BYTES, _MOST_BYTES = 256 << 20, 2 << 30
_CACHES = 8  # how many times the last-level cache
_MEMORY_SHARE = 0.25  # of what is free
_PASSES, _SECONDS = 7, 0.4  # a thread count: at least so many, and so long


def measure(request: Mapping[str, Any]) -> dict[str, Any]:
    """Measure at some thread counts.

    Args:
        request: `threads`, a list.

    Returns:
        `bytes_per_s`, one for each count in the order of `threads`; `buffer_bytes`.
    """
    import numpy as np

    total = buffer_bytes(last_level_cache_bytes(), free_bytes=available_memory_bytes())
    arrays = [np.ones(total // 8, np.float32) for _ in range(2)]
    rates = [_rate(arrays, threads) for threads in request["threads"]]
    return {"bytes_per_s": rates, "buffer_bytes": sum(array.nbytes for array in arrays)}


def buffer_bytes(cache_bytes: int | None, *, free_bytes: int) -> int:
    """Return how much is read in one pass."""
    wanted = max(_LEAST_BYTES, _CACHES * (cache_bytes or 0))
    return max(1 << 20, min(wanted, _MOST_BYTES, int(free_bytes * _MEMORY_SHARE)))


def last_level_cache_bytes(cpus: Path = Path("/sys/devices/system/cpu")) -> int | None:
    """Return the size of the largest cache of the first core; None where the system does not tell."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    sizes = []
    for file in cpus.glob("cpu0/cache/index*/size"):
        text = file.read_text(encoding="ascii").strip()
        sizes.append(int(text[:-1]) * units[text[-1]] if text[-1] in units else int(text))
    return max(sizes, default=None)


def _rate(arrays: list[Any], threads: int) -> float:
    """Return the median of bytes read a second, all threads together."""
    length = len(arrays[0]) // threads
    parts = [[array[first * length : (first + 1) * length] for array in arrays] for first in range(threads)]
    bytes_read = sum(part.nbytes for pair in parts for part in pair)
    rates: list[float] = []
    with ThreadPoolExecutor(threads) as pool:
        barrier = threading.Barrier(threads)

        def read(pair: list[Any]) -> None:
            barrier.wait()  # each thread takes one part
            pair[0].dot(pair[1])

        ends = time.perf_counter() + _SECONDS
        while len(rates) <= _PASSES or time.perf_counter() < ends:
            started = time.perf_counter()
            list(pool.map(read, parts))
            rates.append(bytes_read / (time.perf_counter() - started))
    return statistics.median(rates[1:])
