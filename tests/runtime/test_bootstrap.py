from __future__ import annotations

import numpy as np
import pytest

from ammd.runtime import bootstrap
from ammd.runtime.bootstrap import (
    corpus_draws,
    median_interval,
    next_interval,
    paired_interval,
    ratio_interval,
    simultaneous_intervals,
)


def test_equal_samples_leave_no_doubt() -> None:
    assert median_interval([[3.0] * 4] * 2, generator=np.random.default_rng(0)) == (3, 3)
    assert ratio_interval([[3.0]], [[2.0]], generator=np.random.default_rng(0)) == (1.5, 1.5)


def test_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    samples = np.random.default_rng(5).normal(10, 1, size=(3, 5)).tolist()
    first, again, other = (median_interval(samples, generator=np.random.default_rng(s)) for s in (1, 1, 2))
    assert first == again != other
    assert first[0] < np.median(samples) < first[1]


def test_interval_of_one_process_is_that_of_its_samples() -> None:
    """Against the exact distribution: the median of 3 draws from {1, 2, 3} is 1 with chance 7/27, and so is 3."""
    assert median_interval([[1.0, 2.0, 3.0]], generator=np.random.default_rng(0)) == (1, 3)


def test_processes_that_differ_widen_the_interval() -> None:
    """The same numbers, once mixed in every process and once a process each."""
    alike = [[9.0, 10.0, 11.0]] * 3
    apart = [[9.0] * 3, [10.0] * 3, [11.0] * 3]
    widths = []
    for samples in (alike, apart):
        draws = [median_interval(samples, generator=np.random.default_rng(seed)) for seed in range(5)]
        widths.append(np.mean([high - low for low, high in draws]))
    assert widths[0] <= widths[1]
    assert widths[1] == pytest.approx(2)


@pytest.mark.parametrize("processes", [6, 12])
def test_interval_holds_the_true_median_about_as_often_as_it_says(processes: int) -> None:
    generator = np.random.default_rng(processes)
    held = 0
    for _ in range(200):
        of_process = generator.normal(0, 0.03, size=(processes, 1))
        samples = 10 * (1 + of_process + generator.normal(0, 0.02, size=(processes, 5)))
        low, high = median_interval(samples.tolist(), generator=generator)
        held += low <= 10 <= high
    assert 0.84 <= held / 200 <= 0.99  # 95 % less what few processes leave out


def test_a_process_has_as_many_draws_as_samples() -> None:
    """Against the exact distribution: of 1 and three of 2, twice, 1 is the median only of two draws of the first."""
    medians = bootstrap._medians([[1.0], [2.0, 2.0, 2.0], [2.0, 2.0, 2.0]], np.random.default_rng(0))
    assert set(medians) == {1, 2}  # one each is 1, 2, 2, 2
    assert np.mean(medians == 1) == pytest.approx(1 / 9, abs=0.03)  # 4 standard errors of 2000 draws


@pytest.mark.parametrize(("freedom", "quantile", "error"), [(2, 4.302653, 0.04), (10, 2.228139, 1e-3)])
def test_few_processes_widen_by_students_t(freedom: int, quantile: float, error: float) -> None:
    wider = np.log(bootstrap._wider(float(np.e), processes=freedom + 1))
    assert wider * 1.959964 == pytest.approx(quantile, rel=error)  # the series is worst for the fewest
    assert bootstrap._wider(1.3, processes=1) == 1.3


@pytest.mark.parametrize("processes", [3, 6])
def test_another_run_lands_in_the_interval_about_as_often_as_it_says(processes: int) -> None:
    generator = np.random.default_rng(processes)

    def run() -> np.ndarray:
        of_process = generator.normal(0, 0.03, size=(processes, 1))
        return 10 * (1 + of_process + generator.normal(0, 0.02, size=(processes, 5)))

    held = plain = 0
    for _ in range(200):
        first, median = run().tolist(), float(np.median(run()))
        low, high = next_interval(first, generator=generator)
        held += low <= median <= high
        low, high = median_interval(first, generator=generator)
        plain += low <= median <= high
    assert plain < held
    assert held / 200 >= 0.84  # 95 % less what few processes leave out; more, as samples count in both levels


def test_paired_interval_is_the_binomial_one_where_differences_are_0_or_1() -> None:
    """The share of ones among n - 1 draws from k ones and n - k noughts is Binomial(n - 1, k / n) / (n - 1)."""
    from math import comb

    ones, prompts = 5, 20
    draws = prompts - 1
    chances = [comb(draws, k) * 0.25**k * 0.75 ** (draws - k) for k in range(draws + 1)]
    reached = np.cumsum(chances)
    low, high = (int(np.searchsorted(reached, tail)) / draws for tail in (0.025, 0.975))
    second = np.random.default_rng(3).normal(size=(1, prompts))
    first = second + np.array([1] * ones + [0] * (prompts - ones))
    mean, found_low, found_high = paired_interval(
        first.tolist(), second.tolist(), generator=np.random.default_rng(0)
    )
    assert mean == pytest.approx(0.25)
    # A neighbouring count may be as likely as one draw of 2000 is off.
    assert found_low == pytest.approx(low, abs=1.01 / draws)
    assert found_high == pytest.approx(high, abs=1.01 / draws)


def test_pairing_takes_out_what_the_prompts_differ_by() -> None:
    generator = np.random.default_rng(1)
    hard = generator.normal(0, 10, size=(1, 40))
    first, second = hard + 1, hard + generator.normal(0, 0.1, size=hard.shape)
    mean, low, high = paired_interval(first.tolist(), second.tolist(), generator=generator)
    assert low < mean < high
    assert high - low < 0.2


def test_sums_over_sums_are_means_weighted_by_tokens() -> None:
    nats, tokens = [[2.0, 8.0]], [[1, 3]]
    mean, low, high = paired_interval(
        nats, [[0.0, 0.0]], generator=np.random.default_rng(0), first_over=tokens, second_over=tokens
    )
    assert mean == pytest.approx(10 / 4)
    assert (low, high) == (2, pytest.approx(8 / 3))  # only the first prompt, only the second


def test_seeds_that_differ_widen_the_interval() -> None:
    """Two trainings that are each exact but unlike."""
    mean, low, high = paired_interval(
        [[0.0] * 8, [1.0] * 8], [[0.0] * 8] * 2, generator=np.random.default_rng(0)
    )
    assert (mean, low, high) == (0.5, 0, 1)


@pytest.mark.parametrize(
    ("of_seed", "of_prompt", "low", "high"), [(1.0, 0.0, 0.84, 0.92), (0.5, 1.4, 0.90, 0.97)]
)
def test_interval_of_five_seeds_holds_the_true_difference_about_as_often_as_it_says(
    of_seed: float, of_prompt: float, low: float, high: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the normal interval with the unbiased variance: of seeds alone, it holds with P(|t| < 1.96) = 0.88."""
    monkeypatch.setattr(bootstrap, "DRAWS", 400)
    generator = np.random.default_rng(0)
    trials, held = 400, 0
    for _ in range(trials):
        differences = generator.normal(0, of_seed, size=(5, 1)) + generator.normal(0, of_prompt, size=(1, 40))
        _, below, above = paired_interval(differences.tolist(), [[0.0] * 40] * 5, generator=generator)
        held += below <= 0 <= above
    assert low <= held / trials <= high  # 3 standard errors on either side


def test_means_of_few_seeds_vary_in_the_draws_as_they_do_in_truth() -> None:
    """The variance of the mean of five is a fifth of theirs; five draws of five would have four fifths of that."""
    values = np.random.default_rng(4).normal(size=5)
    counts = np.stack([values, np.ones(5)], axis=-1)[:, None]  # one row
    draws = corpus_draws(counts, lambda sums: sums[0] / sums[1], generator=np.random.default_rng(0))
    assert draws.var() == pytest.approx(values.var(ddof=1) / 5, rel=0.1)  # 3 standard errors of 2000 draws


def test_intervals_of_many_slices_hold_together() -> None:
    """Twenty slices in which nothing has changed: how often does at least one interval leave out zero?"""
    generator = np.random.default_rng(7)
    together = apart = 0
    for _ in range(100):
        rows = np.full((20, 400), np.nan)
        for row in range(20):
            rows[row, 20 * row : 20 * row + 20] = generator.normal(size=20)
        found = simultaneous_intervals(rows, generator=generator)
        together += any(low > 0 or high < 0 for _, low, high in found)
        errors = np.nanstd(rows, axis=1) / np.sqrt(20)
        apart += bool((np.abs(np.nanmean(rows, axis=1)) > 1.96 * errors).any())
    assert apart > 50  # 1 - 0.95^20 = 64 % of the time, one by one
    assert together <= 15  # 5 %, and what 20 prompts leave out of a normal distribution's tails


def test_interval_of_one_slice_is_the_normal_one() -> None:
    values = np.random.default_rng(2).normal(size=(1, 200))
    ((mean, low, high),) = simultaneous_intervals(values, generator=np.random.default_rng(0))
    assert mean == pytest.approx(values.mean())
    assert high - mean == mean - low == pytest.approx(1.96 * values.std() / np.sqrt(200), rel=0.1)


def test_slice_in_which_all_prompts_moved_alike_leaves_no_doubt() -> None:
    rows = np.array([[-0.5] * 6 + [np.nan] * 6, [np.nan] * 6 + [0.0] * 6])
    found = simultaneous_intervals(rows, generator=np.random.default_rng(0))
    assert found == [(-0.5, -0.5, -0.5), (0, 0, 0)]
