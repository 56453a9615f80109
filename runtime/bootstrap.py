"""How far a median, or a difference on the same prompts, may be off by chance: a seeded bootstrap in two levels.

Samples of one process are more alike than those of two: each process has its own memory layout and its own moment on
the machine. So processes are drawn first, with replacement, then samples within each, as many as it has. An interval is
the middle 95 % of what the draws give.

Of n processes, seeds or prompts, n - 1 are drawn: means of n draws would have (n - 1) / n of the variance that means of
n such samples have, and of 5 seeds an interval that is a tenth too narrow. What few do not show of how much they differ
stays unknown: where nothing but 5 seeds differs, the interval holds the truth 88 times of 100, and of one seed or
process it knows nothing.

Where another run will land is another question than where the true median lies: both runs are off. `next_interval`
draws both and widens the result by Student's t, for what few processes do not show.

Two models, or two ways of training, that were judged on the same prompts are compared prompt by prompt:
`paired_interval` draws the prompts, and what both did on each stays together.

A score of a whole corpus, as BLEU, is no mean of scores: `corpus_draws` draws rows and computes the score of each
corpus that comes of it from the rows' own counts.

Sources: Kalibera and Jones 2013, Rigorous benchmarking in reasonable time (random effects at every level of
repetition); Rao and Wu 1988, Resampling inference with complex survey data (n - 1 draws of n give the variance of a
mean without bias); Abramowitz and Stegun, 26.7.5 (quantiles of Student's t).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Samples = Sequence[Sequence[float]]  # by process

DRAWS = 2000
_TAILS = (0.025, 0.975)
_STILL = 1e-12  # a standard error that is rounding
_NORMAL = 1.959964  # the normal distribution's upper tail of these
_COUNTS_AT_ONCE = 1 << 22  # how often each row is drawn, in the draws that exist at once


def median_interval(samples: Samples, *, generator: np.random.Generator) -> tuple[float, float]:
    """Return the 95 % interval of the median over all of `samples`."""
    return middle(_medians(samples, generator))


def ratio_interval(
    current: Samples, baseline: Samples, *, generator: np.random.Generator
) -> tuple[float, float]:
    """Return the 95 % interval of the median of `current` over that of `baseline`, each drawn by itself."""
    return middle(_medians(current, generator) / _medians(baseline, generator))


def next_interval(samples: Samples, *, generator: np.random.Generator) -> tuple[float, float]:
    """Return where the median of another run of as many processes and samples will lie, 95 times of 100."""
    import numpy as np

    ratios = _medians(samples, generator) / _medians(samples, generator)
    low, high = (_wider(end, processes=len(samples)) for end in middle(ratios))
    median = float(np.median(np.concatenate([np.asarray(one, dtype=np.float64) for one in samples])))
    return median * low, median * high


def paired_interval(
    first: Samples,
    second: Samples,
    *,
    generator: np.random.Generator,
    first_over: Samples | None = None,
    second_over: Samples | None = None,
) -> tuple[float, float, float]:
    """Return the mean of `first` less that of `second`, and its 95 % interval.

    Args:
        first: By seed (of a training; one where there is no other), then by prompt. [S][P]
        second: As many, of the same prompts.
        generator: Draws seeds and prompts with replacement: both are samples, of trainings and of what could be asked.
        first_over: What the sum of `first` is divided by instead of their number, a part of it for each. [S][P]
        second_over: The same for `second`.
    """
    import numpy as np

    sides = [
        (np.asarray(of, dtype=np.float64), np.ones_like(of) if over is None else np.asarray(over))
        for of, over in ((first, first_over), (second, second_over))
    ]
    seeds, prompts = sides[0][0].shape
    seed = generator.integers(seeds, size=(DRAWS, _draws_of(seeds), 1))
    prompt = generator.integers(prompts, size=(DRAWS, 1, _draws_of(prompts)))
    means, drawn = [], []
    for of, over in sides:
        means.append(float(of.sum() / over.sum()))
        totals = over[seed, prompt].sum(axis=(1, 2))
        # A draw in which nothing counts says nothing.
        drawn.append(of[seed, prompt].sum(axis=(1, 2)) / np.where(totals, totals, np.nan))
    differences = drawn[0] - drawn[1]
    return means[0] - means[1], *middle(differences)


def corpus_draws(
    counts: NDArray[np.float64],
    score: Callable[[Sequence[float]], float],
    *,
    generator: np.random.Generator,
) -> NDArray[np.float64]:
    """Return what the mean over seeds of a corpus score is in each of `DRAWS` corpora.

    Two models' draws with generators of one seed are paired: the same rows and seeds are in each.

    Args:
        counts: What each row adds to the sums from which the score is computed, by sampling seed. [S][R][K]
        score: The score of a corpus, from its K sums.
        generator: Draws rows with replacement, the same for all seeds, and seeds with replacement.
    """
    import numpy as np

    seeds, rows, _ = counts.shape
    drawn_seeds = generator.integers(seeds, size=(DRAWS, _draws_of(seeds)))
    scores: list[list[float]] = []
    for start in range(0, DRAWS, step := max(1, _COUNTS_AT_ONCE // rows)):
        size = min(step, DRAWS - start)
        times = generator.multinomial(_draws_of(rows), np.full(rows, 1 / rows), size=size).astype(np.float64)
        totals = (times @ counts).swapaxes(0, 1)  # [size][S][K]; whole numbers stay whole
        scores += [[score(sums) for sums in of_draw] for of_draw in totals.tolist()]
    means: NDArray[np.float64] = np.take_along_axis(np.asarray(scores), drawn_seeds, axis=1).mean(axis=1)
    return means


def middle(draws: NDArray[np.float64]) -> tuple[float, float]:
    """Return the middle 95 % of draws; those in which nothing counts say nothing."""
    import numpy as np

    low, high = np.nanquantile(draws, _TAILS)
    return float(low), float(high)


def simultaneous_intervals(
    differences: NDArray[np.float64], *, generator: np.random.Generator
) -> list[tuple[float, float, float]]:
    """Return the mean of each row and an interval, such that with 95 % all intervals hold together.

    With one interval a row, one of twenty slices would seem to have moved where none has. Here each row's deviation is
    counted in its own standard errors, and all intervals are as wide as the largest of them goes in 95 % of the draws:
    rows that share prompts cost little, unlike in Bonferroni's rule.

    Args:
        differences: One row a slice, one column a prompt; NaN where the prompt is not of the slice. [S][P]
        generator: Draws prompts with replacement.

    Source:
        Romano and Wolf 2005, Exact and approximate stepdown methods for multiple hypothesis testing (one step of it).
    """
    import numpy as np

    counts = np.ones_like(differences) * ~np.isnan(differences)
    values = np.nan_to_num(differences)
    means = values.sum(axis=1) / counts.sum(axis=1)
    prompts = differences.shape[1]
    drawn = generator.multinomial(
        prompts, np.full(prompts, 1 / prompts), size=DRAWS
    )  # times each prompt is drawn
    sizes = drawn @ counts.T
    deviations = (drawn @ values.T) / np.where(sizes, sizes, np.nan) - means  # [DRAWS, S]
    errors = np.nanstd(deviations, axis=0)
    moving = errors > _STILL
    widths = np.zeros_like(means)
    if moving.any():
        largest = np.nanmax(np.abs(deviations[:, moving]) / errors[moving], axis=1)
        counted = counts[moving].sum(axis=1)
        unbiased = errors[moving] * np.sqrt(counted / (counted - 1))  # as `_draws_of`, slice by slice
        widths[moving] = np.quantile(largest, 0.95) * unbiased
    return [
        (float(mean), float(mean - width), float(mean + width))
        for mean, width in zip(means, widths, strict=True)
    ]


def _draws_of(count: int) -> int:
    """Return how many of `count` seeds, rows, prompts or processes are drawn: see the module's docstring."""
    return max(1, count - 1)


def _wider(ratio: float, *, processes: int) -> float:
    """Move the end of a ratio's interval away from 1; of one process nothing is known that would say how far."""
    if processes == 1:
        return ratio
    z, freedom = _NORMAL, processes - 1
    student = (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )
    return float(ratio ** (student / z))


def _medians(samples: Samples, generator: np.random.Generator) -> NDArray[np.float64]:
    """Return the medians of all draws."""
    import numpy as np

    counts = np.array([len(one) for one in samples])
    longest = int(counts.max())
    values = np.full((len(samples), longest), np.nan)
    for row, one in zip(values, samples, strict=True):
        row[: len(one)] = one
    process = generator.integers(len(samples), size=(DRAWS, _draws_of(len(samples)), 1))
    sample = generator.integers(counts[process], size=(*process.shape[:2], longest))
    drawn = values[process, sample]
    drawn[np.arange(longest) >= counts[process]] = np.nan  # no more draws than a process has samples
    drawn = np.sort(drawn.reshape(DRAWS, -1), axis=1)  # NaN goes last
    total = counts[process].sum(axis=(1, 2))
    rows = np.arange(DRAWS)
    medians: NDArray[np.float64] = (drawn[rows, (total - 1) // 2] + drawn[rows, total // 2]) / 2
    return medians
