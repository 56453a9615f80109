"""DistiLLM's schedule, with stand-ins for the texts: what is tested is when each kind is asked for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from ammd.distill.adaptive import AdaptiveSupply
from ammd.distill.settings import DistiLLM

STUDENT: Any = SimpleNamespace(model=None)


class Texts:
    def __init__(self) -> None:
        self.sampled = 0

    def next_batch(self) -> str:
        return "teacher's"

    def sample(self, _model: object) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        self.sampled += 1
        return [((1, self.sampled), (2,))] * 4


def supply_of(losses: list[float], **changes: object) -> tuple[AdaptiveSupply, Texts]:
    wanted = {"steps": 200, "check_steps": 1, "share_step": 0.25, "replay_texts": 8, **changes}
    texts: Any = Texts()
    remaining = iter(losses + [losses[-1]] * 1000)
    supply = AdaptiveSupply(
        DistiLLM.model_validate(wanted),
        teacher_texts=texts,
        student_texts=texts,
        validate=lambda _student: next(remaining),
        batch_size=4,
        seed=0,
    )
    return supply, texts


def test_a_falling_loss_leaves_training_on_the_teachers_texts() -> None:
    supply, texts = supply_of([1.0, 0.9, 0.8, 0.85], tolerance=0.1)
    kinds = [supply.batches(step, STUDENT) for step in range(1, 50)]
    assert all(kind == ("teacher's", None) for kind in kinds)
    assert supply.student_share == 0
    assert texts.sampled == 0


def test_each_rise_beyond_the_tolerance_raises_the_students_share() -> None:
    supply, _ = supply_of([1.0, 1.2, 1.25, 1.5, 1.5], tolerance=0.1)
    shares = []
    for step in range(1, 7):
        supply.batches(step, STUDENT)
        shares.append(supply.student_share)
    assert shares == [0, 0.25, 0.25, 0.5, 0.5, 0.5]


def test_the_share_of_steps_follows_and_new_texts_become_rare() -> None:
    supply, texts = supply_of([1.0, 2.0], share_step=0.6)
    supply.batches(1, STUDENT)
    on = [supply.batches(step, STUDENT)[1] is not None for step in range(2, 201)]
    assert sum(on) / len(on) == pytest.approx(0.6, abs=0.1)
    early = sum(on[:100])
    assert texts.sampled < sum(on)  # the rest came from the buffer
    before = texts.sampled
    for step in range(190, 201):
        supply.batches(step, STUDENT)
    assert texts.sampled - before <= 2  # nearly none at the end
    assert early > 0
