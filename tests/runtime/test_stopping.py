"""When passes are enough, on times that nobody had to wait for."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
import pytest

from ammd.runtime.stopping import (
    PassPlan,
    StoppedBy,
    WarmedUpBy,
    half_width,
    plan_of,
    stopped,
    warmed_up,
)


def plan(**changes: Any) -> PassPlan:
    known: dict[str, Any] = {
        "warmup": 1,
        "max_warmup": 10,
        "repetitions": 5,
        "max_repetitions": 30,
        "min_seconds": 0.0,
        "max_seconds": 100.0,
        "target_interval": 0.02,
    }
    return PassPlan(**(known | changes))


def passes_until_warm(times: list[float], found: PassPlan, *, other: list[float] | None = None) -> Any:
    for count in range(len(times) + 1):
        known = {"prefill": (other or times)[:count], "decode": times[:count]}
        if reason := warmed_up(known if count else {}, found):
            return count, reason
    return None


def test_warm_up_ends_once_two_windows_agree() -> None:
    agreement = WarmedUpBy.AGREEMENT
    assert passes_until_warm([1.0] * 10, plan()) == (4, agreement)
    falling = [2.0, 1.5, 1.2, 1.1, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert passes_until_warm(falling, plan()) == (
        8,
        agreement,
    )  # at 7, (1.1, 1.0) and (1.0, 1.0) are 5 % apart
    assert passes_until_warm([1.0] * 10, plan(), other=falling) == (8, agreement)  # both have to be steady
    assert passes_until_warm([1.0] * 10, plan(warmup=6)) == (6, agreement)


def test_warm_up_has_a_maximum_which_is_never_under_its_minimum() -> None:
    restless = [1.1**index for index in range(20)]
    assert passes_until_warm(restless, plan()) == (10, WarmedUpBy.MAX_WARMUP)
    assert passes_until_warm([1.0] * 9, plan(warmup=0, max_warmup=0)) == (0, WarmedUpBy.MAX_WARMUP)
    assert plan_of({"warmup": 3, "repetitions": 1, "max_warmup": 1}).max_warmup == 3


def passes_until_stopped(times: list[float], found: PassPlan) -> Any:
    for count in range(len(times) + 1):
        known = {"prefill": times[:count], "decode": times[:count]}
        if reason := stopped(known if count else {}, found, seconds=sum(times[:count])):
            return count, reason
    return None


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, (5, StoppedBy.TARGET)),
        ({"min_seconds": 7.0}, (10, StoppedBy.TARGET)),  # enough at 7, looked at after every 5
        ({"min_seconds": 7.0, "max_repetitions": 6}, (6, StoppedBy.MAX_REPETITIONS)),
        ({"max_repetitions": 1}, (5, StoppedBy.MAX_REPETITIONS)),
        ({"max_seconds": 3.0}, (5, StoppedBy.MAX_SECONDS)),  # not before there are enough
    ],
)
def test_steady_passes_end_at_the_first_look_after_all_minima(changes: Any, expected: Any) -> None:
    assert passes_until_stopped([1.0] * 40, plan(**changes)) == expected


def test_restless_passes_go_on_to_a_maximum() -> None:
    restless = [1.0, 1.5] * 50
    assert passes_until_stopped(restless, plan()) == (30, StoppedBy.MAX_REPETITIONS)
    assert passes_until_stopped(restless, plan(max_seconds=20.0)) == (16, StoppedBy.MAX_SECONDS)


def test_one_restless_rate_is_enough_to_go_on() -> None:
    known = {"prefill": [1.0, 1.5, 1.0, 1.5, 1.2], "decode": [1.0] * 5}
    assert stopped(known, plan(), seconds=9.0) is None
    assert stopped(known, plan(target_interval=0.5), seconds=9.0) is StoppedBy.TARGET


def test_request_without_limits_makes_as_many_passes_as_it_names() -> None:
    found = plan_of({"warmup": 2, "repetitions": 3})
    assert passes_until_warm([1.0] * 9, found)[0] == 2
    assert passes_until_stopped([1.0, 1.4] * 9, found) == (3, StoppedBy.MAX_REPETITIONS)


def test_half_width_is_a_share_of_the_median() -> None:
    assert half_width([[2.0, 2.0], [2.0]]) == 0
    # The median of 3 draws from {1, 2, 3} is 1 with chance 7/27, and so is 3.
    assert half_width([[1.0, 2.0, 3.0]]) == pytest.approx((3 - 1) / 2 / 2)


@pytest.mark.parametrize("skew", [0.0, 1.0])
def test_stopping_early_moves_the_median_by_less_than_a_twentieth_of_its_noise(skew: float) -> None:
    """Of 300 simulated processes, also with times that have a long tail: where the rule decides against a fixed 15."""
    generator = np.random.default_rng(3)
    noise, found = 0.03, plan(max_repetitions=15)
    adaptive, fixed, early = [], [], 0
    for _ in range(300):
        draws = generator.normal(size=15) + skew * generator.exponential(size=15)
        times = (1 + noise * draws).tolist()
        count, _ = passes_until_stopped(times, found)
        early += count < 15
        adaptive.append(statistics.median(times[:count]))
        fixed.append(statistics.median(times))
    assert early > 50  # the rule does decide
    assert abs(statistics.fmean(adaptive) - statistics.fmean(fixed)) < noise / 20
