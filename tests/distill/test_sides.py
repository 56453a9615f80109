"""Settings in, sides out: shares of rows and of the loss."""

from __future__ import annotations

import pytest

from ammd.distill import settings
from ammd.distill.objective import Weights
from ammd.distill.sides import sides_of


@pytest.mark.parametrize(
    ("share", "rows"), [(0.0, (16, 0)), (0.01, (16, 1)), (0.25, (12, 4)), (1.0, (0, 16))]
)
def test_each_side_has_its_share_of_rows_and_loss(share: float, rows: tuple[int, int]) -> None:
    sides = sides_of(settings.GeneralisedJSD(student_share=share), batch_size=16)
    assert tuple(side.rows if side else 0 for side in sides) == rows
    assert sum(side.scale for side in sides if side) == pytest.approx(1)


def test_a_batch_of_one_still_feeds_both_sides() -> None:
    assert [side.rows for side in sides_of(settings.Ammd(), batch_size=1) if side] == [1, 1]


def test_ammd_keeps_its_own_weights_by_side() -> None:
    objective = settings.Ammd(off_weight=0.5, on_weight=2.0, kd_weight=0.3, critic_penalty=0.7)
    off, on = sides_of(objective, batch_size=8)
    assert off is not None
    assert on is not None
    assert off.weights == Weights(kl=0.3, game=0.5, critic_penalty=0.7)
    assert on.weights == Weights(game=2.0, critic_penalty=0.7)
    assert (off.rows, off.scale, on.rows, on.scale) == (4, 1.0, 4, 1.0)


def test_ammd_without_its_on_policy_side_samples_nothing() -> None:
    off, on = sides_of(settings.Ammd(on_weight=0), batch_size=8)
    assert off is not None
    assert off.rows == 8
    assert on is None


def test_fine_tuning_is_cross_entropy_on_the_given_texts() -> None:
    off, on = sides_of(settings.Sft(), batch_size=8)
    assert off is not None
    assert off.weights == Weights(cross_entropy=1.0)
    assert on is None
