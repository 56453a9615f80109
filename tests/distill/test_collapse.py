from __future__ import annotations

import pytest

from ammd.distill.collapse import CollapseWatch
from ammd.distill.step_log import StepLog, repeated_share
from ammd.errors import CollapseError


def line(step: int, **measured: float) -> StepLog:
    return StepLog(
        phase="ammd", step=step, seconds=1.0, loss=1.0, lr=1e-4, grad_norm=1.0, tokens_per_s=1.0, **measured
    )


@pytest.mark.parametrize(
    ("healthy", "sick", "message"),
    [
        ({"entropy_on": 2.0}, {"entropy_on": 0.1}, "entropy fell from 2.000 to 0.100 nats"),
        ({"repetition_on": 0.1}, {"repetition_on": 0.9}, "repeats itself: 74%"),
        (
            {"critic_saturation_off": 0.0},
            {"critic_saturation_off": 1.0},
            "critic of the off-policy side is at its bound on 100%",
        ),
    ],
)
def test_a_collapse_is_named_once_it_lasts(
    healthy: dict[str, float], sick: dict[str, float], message: str
) -> None:
    watch = CollapseWatch()
    for step in range(1, 11):
        watch.check(line(step, **healthy))
    for step in range(11, 14):
        watch.check(line(step, **sick))  # a few bad steps are none
    with pytest.raises(CollapseError, match=rf"{message}.*, at step 1[45] of phase `ammd`"):
        for step in (14, 15):
            watch.check(line(step, **sick))


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({"entropy_on": 2.0, "tv_on": 0.5}, {"entropy_on": 0.1, "tv_on": 0.2}),
        ({"repetition_on": 0.1, "repetition_off": 0.7}, {"repetition_on": 0.8, "repetition_off": 0.7}),
    ],
    ids=["sure like its teacher", "repeating like its teacher"],
)
def test_a_student_that_becomes_like_its_teacher_is_well(
    first: dict[str, float], then: dict[str, float]
) -> None:
    watch = CollapseWatch()
    for step in range(1, 31):
        watch.check(line(step, **(first if step <= 10 else then)))


def test_a_student_that_is_sure_of_something_else_has_collapsed() -> None:
    watch = CollapseWatch()
    for step in range(1, 11):
        watch.check(line(step, entropy_on=2.0, tv_on=0.5))
    with pytest.raises(CollapseError, match="entropy fell"):
        for step in range(11, 21):
            watch.check(line(step, entropy_on=0.1, tv_on=0.6))


def test_a_student_that_stands_still_for_long_ends_the_run() -> None:
    watch = CollapseWatch()
    for step in range(1, 25):
        watch.check(line(step, stood_still=True))
    with pytest.raises(CollapseError, match="stood still for 25 steps"):
        watch.check(line(25, stood_still=True))


def test_repeated_share_counts_four_token_sequences() -> None:
    assert repeated_share([1, 2, 3]) == 0
    assert repeated_share([1, 2, 3, 4, 5]) == 0
    assert repeated_share([7] * 8) == pytest.approx(4 / 5)


def test_one_that_learns_given_tokens_may_become_as_sure_as_they_are() -> None:
    watch = CollapseWatch(learns_tokens=True)
    for step in range(1, 31):
        sure = {"entropy_off": 2.0, "tv_off": 0.2} if step <= 10 else {"entropy_off": 0.1, "tv_off": 0.5}
        watch.check(line(step, **sure))
