"""Is a measurement worth its name? `good`, `noisy` or `invalid`, by limits that stand here before anything is measured.

Two kinds of evidence. From outside the measurement: the share of all cores' time that other processes took, or the
host of a virtual machine, and how long the cgroup was held back. From the passes themselves: whether the later ones
are slower or faster than the earlier, how many are far from the rest, and how far the processes' medians lie apart.

The second kind's limits are wide, because the intervals tell of ordinary restlessness: a virtual machine whose host
changes its clock is 10 to 25 % faster or slower from one second to the next, with nothing else to show for it.

A process that outside evidence speaks against is measured again. Its times have no say in that, so slow passes are not
thrown away for being slow: what is left out differs in what others did, not in what came of it. Load average,
involuntary switches, frequencies and temperatures are told but not judged: they say the same less directly.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any

LEAST_PASSES = 4  # fewer have no halves, and no rest to be far from
LEAST_SECONDS = 0.5  # in less the kernel's ticks are too coarse to say who used the time
OUTLIER = 0.25  # of the median: a pass that is further off


class Validity(Enum):
    """How good a measurement is, best first."""

    GOOD = "good"
    NOISY = "noisy"
    INVALID = "invalid"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """From where a share is noisy, from where invalid, and what it says."""

    noisy: float
    invalid: float
    meaning: str


OUTSIDE: Mapping[str, Limit] = {
    "competing_share": Limit(noisy=0.10, invalid=0.30, meaning="of all cores' time went to other processes"),
    "steal_share": Limit(noisy=0.02, invalid=0.10, meaning="of all cores' time was taken by the host"),
    "throttled_share": Limit(noisy=0.01, invalid=0.10, meaning="of the time the CPU quota was used up"),
}
INSIDE: Mapping[str, Limit] = {
    "drift": Limit(noisy=0.30, invalid=0.60, meaning="between the passes of the first and the second half"),
    "outlier_share": Limit(noisy=0.25, invalid=0.50, meaning=f"of the passes are over {OUTLIER:.0%} off"),
}
BETWEEN: Mapping[str, Limit] = {
    "process_spread": Limit(noisy=0.40, invalid=0.80, meaning="from the slowest process to the fastest"),
}
RULE: Mapping[str, Limit] = {**OUTSIDE, **INSIDE, **BETWEEN}


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What the rule says, and on what grounds."""

    over: Mapping[str, float] = field(default_factory=dict)  # the shares that are over a limit

    @property
    def validity(self) -> Validity:
        """The verdict."""
        if any(share > RULE[name].invalid for name, share in self.over.items()):
            return Validity.INVALID
        return Validity.NOISY if self.over else Validity.GOOD

    @property
    def reasons(self) -> tuple[str, ...]:
        """One sentence for each share that is over its limit."""
        return tuple(
            f"{share:.1%} {RULE[name].meaning}, {RULE[name].noisy:.0%} is allowed"
            for name, share in self.over.items()
        )


def judge(shares: Mapping[str, float | None]) -> Judgement:
    """Hold what is known of `shares` (by names of `RULE`) against the limits."""
    return Judgement(
        over={name: share for name, share in shares.items() if share is not None and share > RULE[name].noisy}
    )


def together(judgements: Iterable[Judgement]) -> Judgement:
    """Return the judgement of a whole that is as bad as its worst part."""
    worst: dict[str, float] = {}
    for one in judgements:
        worst |= {name: max(share, worst.get(name, 0.0)) for name, share in one.over.items()}
    return Judgement(over=worst)


def outside(noise: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the outside evidence in the noise of a process; None of what is not told or was too short."""
    is_long = noise.get("seconds", 0.0) >= LEAST_SECONDS
    return {name: noise.get(name) if is_long else None for name in OUTSIDE}


def steadiness(seconds: Sequence[float]) -> dict[str, float | None]:
    """Return the evidence in the passes of a process, from the seconds of each in order; None of too few."""
    if len(seconds) < LEAST_PASSES:
        return dict.fromkeys(INSIDE)
    half = len(seconds) // 2
    first, second = statistics.median(seconds[:half]), statistics.median(seconds[-half:])
    median = statistics.median(seconds)
    outliers = [one for one in seconds if abs(one - median) > OUTLIER * median]
    return {"drift": abs(second - first) / first, "outlier_share": len(outliers) / len(seconds)}


def process_spread(by_process: Sequence[Sequence[float]]) -> dict[str, float | None]:
    """Return how far the medians of processes lie apart, as a share of the middle one; None of one process."""
    medians = [statistics.median(one) for one in by_process]
    spread = (max(medians) - min(medians)) / statistics.median(medians) if len(medians) > 1 else None
    return {"process_spread": spread}


def rule_as_json() -> dict[str, Any]:
    """Return the limits as they stand in the document."""
    return {name: asdict(limit) for name, limit in RULE.items()} | {
        "outlier": OUTLIER,
        "least_passes": LEAST_PASSES,
        "least_seconds": LEAST_SECONDS,
    }
