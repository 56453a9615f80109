"""What a run cost: the sum over the stages that it consists of, wherever and whenever they were made.

A number that one of the stages does not tell is unknown for the whole run: older versions did not count processor time
and tokens, and few machines tell their energy.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypedDict

from ammd.artifact import Manifest

_GENERATE = (
    "prepare",
    "distill",
)  # stages that have tokens written to make the student; others write to judge it


class Costs(TypedDict):
    """Of one run; None is unknown."""

    seconds: float  # wall time in the stages
    cpu_seconds: float | None  # user and system time of all their processes
    peak_rss_bytes: int  # of the hungriest stage
    generated_tokens: int | None  # that teacher and student wrote to make the student
    trained_tokens: int | None  # response tokens that the student was trained on, each as often as it was
    joules: float | None  # of the whole processor while the stages ran


def total_costs(manifests: Sequence[Manifest]) -> Costs:
    """Return what these stages cost together."""
    return Costs(
        seconds=round(sum(manifest.seconds for manifest in manifests), 3),
        cpu_seconds=_sum(manifest.cpu_seconds for manifest in manifests),
        peak_rss_bytes=max((manifest.peak_rss_bytes for manifest in manifests), default=0),
        generated_tokens=_count(manifests, "generated_tokens", of=_GENERATE),
        trained_tokens=_count(manifests, "trained_tokens", of=("distill",)),
        joules=_sum(manifest.joules for manifest in manifests),
    )


def _sum(values: Iterable[float | None]) -> float | None:
    total = 0.0
    for value in values:
        if value is None:
            return None
        total += value
    return round(total, 3)


def _count(manifests: Sequence[Manifest], name: str, *, of: Sequence[str]) -> int | None:
    """Return the sum of a number that each of the stages `of` has among its results."""
    total = _sum(manifest.results.get(name) for manifest in manifests if manifest.stage in of)
    return None if total is None else int(total)
