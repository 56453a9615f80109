from __future__ import annotations

from typing import Any

import pytest

from ammd.runtime.heldout import HeldOut
from ammd.runtime.transfer import METRICS, score_rows, summarize

ROWS = tuple(
    HeldOut(
        prompt=f"{n}", response="the cat sat down", prompt_ids=(1,), response_ids=(4, 5, 2), reference=text
    )
    for n, text in enumerate(["the cat sat up", "dogs", None])
)
TEACHER = [{"ids": [4, 5, 2], "text": "the cat sat down", "ended": True, "nats": 0.0}] * 3


def answer(*ids: int, text: str, nats: float = 1.0, ended: bool = True) -> dict[str, Any]:
    return {"ids": list(ids), "text": text, "ended": ended, "nats": nats}


def distance(kl: float, *, positions: int = 3, sure: int = 0, agreed_sure: int = 0) -> dict[str, Any]:
    return {
        "kl_nats": kl,
        "tv": kl / 2,
        "positions": positions,
        "agreed": agreed_sure + 1,
        "sure": sure,
        "agreed_sure": agreed_sure,
        "agreed_unsure": 1,
    }


def summary(**record: Any) -> dict[str, Any]:
    return summarize(score_rows("m", record, rows=ROWS, teacher=TEACHER))


def test_share_of_the_teachers_task_score() -> None:
    """The teacher has 3/4 against the first reference and nothing against the second."""
    found = summary(
        teacher_texts=[distance(1.0)],
        own_texts=[],
        answers=[answer(4, text="the cat"), answer(4, text="dogs"), answer(4, text="no reference")],
    )
    first = 2 * 1 * 0.5 / 1.5  # precision 2/2, recall 2/4
    assert found["rouge_l_reference"] == pytest.approx((first + 1) / 2)
    assert found["task_score_kept"] == pytest.approx((first + 1) / 0.75)


def test_means_over_tokens_weigh_each_prompt_by_its_tokens() -> None:
    found = summary(
        teacher_texts=[distance(1.0, positions=1), distance(2.0, positions=9)],
        own_texts=[distance(3.0)],
        answers=[answer(4, 5, text="a", nats=2.0), answer(4, 5, 6, 7, text="a", nats=5.0)],
    )
    assert found["kl_to_teacher_nats"] == pytest.approx(1.9)
    assert found["nll_under_teacher_nats"] == pytest.approx(4.0)
    assert found["exposure_bias_nats"] == 2  # of the prompts that have both
    assert (found["prompts"], found["kl_positions"]) == (2, 10)


def test_agreement_is_told_apart_by_how_sure_the_teacher_is() -> None:
    found = summary(
        teacher_texts=[distance(1, positions=4, sure=3, agreed_sure=2), distance(1, positions=2, sure=0)],
        own_texts=[],
        answers=[],
    )
    assert found["agreement_sure"] == pytest.approx(2 / 3)
    assert found["agreement_unsure"] == pytest.approx((1 + 1) / (1 + 2))
    assert found["teacher_sure_share"] == pytest.approx(3 / 6)
    assert "rouge_l" not in found


def test_parting_is_counted_in_tokens_that_are_equal_before_it() -> None:
    found = summary(
        teacher_texts=[distance(1)] * 3,
        own_texts=[],
        answers=[
            answer(4, 5, 2, text="the cat sat down"),
            answer(4, 7, text="x", ended=False),
            answer(8, text="y", ended=False),
        ],
    )
    assert found["greedy_prefix_tokens"] == pytest.approx((3 + 1 + 0) / 3)
    assert found["greedy_same_share"] == pytest.approx(1 / 3)
    assert found["ended_share"] == pytest.approx(1 / 3)
    assert found["teacher_ended_share"] == 1
    assert found["response_tokens_mean"] == 2


def test_every_number_has_a_name_of_its_own() -> None:
    assert len({metric.key for metric in METRICS}) == len(METRICS)
