"""When a process is warm, and when it has measured enough.

Warm-up ends once two windows of passes in succession agree, and is thrown away whole. Then passes are taken until there
are enough of them, they have lasted long enough and the interval of both medians is narrow, or until there are as many,
or they have lasted as long, as is allowed.

That the end depends on what was measured must not move the result. So the rule looks at how wide the interval is
and never at where it lies, only after every `repetitions` passes, and every measured pass counts. Passes that happen
to be alike end a process early, so its interval is a little too narrow; that of a row rests on several processes.

Sources: optimum-benchmark (at least so many iterations and so many seconds), MLPerf's LoadGen (the same, and validity
said with the result).
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from .bootstrap import median_interval

WARM_WINDOW = 2  # passes
WARM_TOLERANCE = 0.03  # of the medians of two windows
_SEED = 0  # of the intervals that decide

# Name of a rate -> the seconds of each pass so far.
Times = Mapping[str, Sequence[float]]


class WarmedUpBy(Enum):
    """What ended the warm-up."""

    AGREEMENT = "agreement"
    MAX_WARMUP = "max_warmup"


class StoppedBy(Enum):
    """What ended the measuring."""

    TARGET = "target"
    MAX_REPETITIONS = "max_repetitions"
    MAX_SECONDS = "max_seconds"
    MAX_PROCESSES = "max_processes"  # of a cell


@dataclass(frozen=True, slots=True, kw_only=True)
class PassPlan:
    """How many passes one process makes."""

    warmup: int
    max_warmup: int
    repetitions: int
    max_repetitions: int
    min_seconds: float
    max_seconds: float
    target_interval: float


def plan_of(request: Mapping[str, Any]) -> PassPlan:
    """Return what a child's request says; without limits, as many passes as it names."""
    warmup, repetitions = request["warmup"], request["repetitions"]
    return PassPlan(
        warmup=warmup,
        max_warmup=max(warmup, request.get("max_warmup", 0)),
        repetitions=repetitions,
        max_repetitions=max(repetitions, request.get("max_repetitions", 0)),
        min_seconds=request.get("min_seconds", 0.0),
        max_seconds=request.get("max_seconds", float("inf")),
        target_interval=request.get("target_interval", 0.0),
    )


def warmed_up(times: Times, plan: PassPlan) -> WarmedUpBy | None:
    """Return what ends the warm-up after the passes in `times`; None where it goes on."""
    count = _count(times)
    if count >= plan.max_warmup:
        return WarmedUpBy.MAX_WARMUP
    if count < max(plan.warmup, 2 * WARM_WINDOW):
        return None
    return WarmedUpBy.AGREEMENT if all(map(_windows_agree, times.values())) else None


def stopped(times: Times, plan: PassPlan, *, seconds: float) -> StoppedBy | None:
    """Return what ends the measuring after the passes in `times`, which lasted `seconds`; None where it goes on."""
    count = _count(times)
    if count < plan.repetitions:
        return None
    if count >= plan.max_repetitions:
        return StoppedBy.MAX_REPETITIONS
    if seconds >= plan.max_seconds:
        return StoppedBy.MAX_SECONDS
    if seconds < plan.min_seconds or count % plan.repetitions:
        return None
    widths = (half_width([samples]) for samples in times.values())
    return StoppedBy.TARGET if all(width <= plan.target_interval for width in widths) else None


def half_width(samples: Sequence[Sequence[float]]) -> float:
    """Return half the 95 % interval of the median of `samples` (by process), as a share of the median."""
    import numpy as np

    low, high = median_interval(samples, generator=np.random.default_rng(_SEED))
    return (high - low) / 2 / statistics.median([value for one in samples for value in one])


def _count(times: Times) -> int:
    return min(map(len, times.values()), default=0)


def _windows_agree(samples: Sequence[float]) -> bool:
    last = statistics.median(samples[-WARM_WINDOW:])
    before = statistics.median(samples[-2 * WARM_WINDOW : -WARM_WINDOW])
    return abs(last - before) <= WARM_TOLERANCE * before
