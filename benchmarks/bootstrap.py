"""Intervals for the difference of two arms that were judged on the same prompts with the same seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_DRAWS = 2000


def paired_interval(
    first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]
) -> tuple[float, float, float]:
    """Return the mean of `first - second` and its 95 % interval.

    Both are [seeds][prompts]. Seeds and prompts are drawn anew with replacement (2,000 draws), since both are
    samples: of trainings, and of what could be asked.
    """
    differences = np.asarray(first) - np.asarray(second)
    generator = np.random.default_rng(0)
    seeds, prompts = differences.shape
    drawn = [
        differences[generator.integers(seeds, size=seeds)][
            :, generator.integers(prompts, size=prompts)
        ].mean()
        for _ in range(_DRAWS)
    ]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(differences.mean()), float(low), float(high)
