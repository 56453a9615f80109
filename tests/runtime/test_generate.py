from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from ammd.errors import EngineError, RecipeError
from ammd.runtime.generate import Ends, FinishReason, Piece, generate
from ammd.runtime.sampling import Sampling


def answer(engine: object, **ends: object) -> list[Piece]:
    return list(generate(engine, [65], sampling=Sampling(), ends=Ends(**ends)))  # type: ignore[arg-type]


def test_greedy_text_stops_at_the_end_token(saying: Callable) -> None:
    pieces = answer(saying("grün"))
    assert "".join(piece.text for piece in pieces) == "grün"
    assert pieces[-1].finish_reason is FinishReason.END_TOKEN
    assert all(piece.finish_reason is None for piece in pieces[:-1])


def test_character_of_two_tokens_appears_whole(saying: Callable) -> None:
    assert [piece.text for piece in answer(saying("ü"))] == ["", "ü", ""]


def test_length_limit_ends_a_response(saying: Callable) -> None:
    pieces = answer(saying("abcdef"), max_new_tokens=3)
    assert [piece.text for piece in pieces] == ["a", "b", "c"]
    assert pieces[-1].finish_reason is FinishReason.LENGTH


def test_full_context_ends_a_response_with_its_own_reason(saying: Callable) -> None:
    pieces = answer(saying("abcdef", context_tokens=3))
    assert "".join(piece.text for piece in pieces) == "ab"
    assert pieces[-1].finish_reason is FinishReason.CONTEXT_FULL
    asked_for = answer(saying("abcdef", context_tokens=3), max_new_tokens=2)
    assert asked_for[-1].finish_reason is FinishReason.LENGTH


def test_stop_string_over_several_tokens_ends_a_response_unseen(saying: Callable) -> None:
    pieces = answer(saying("ab§§cd"), stop_strings=("§§",))  # a token is a byte: four for the stop string
    assert [piece.text for piece in pieces] == ["a", "b", "", "", "", ""]
    assert pieces[-1].finish_reason is FinishReason.STOP_STRING


@pytest.mark.parametrize(
    ("ends", "text", "reason"),
    [
        ({}, "ab#", FinishReason.END_TOKEN),
        ({"max_new_tokens": 3}, "ab#", FinishReason.LENGTH),
        ({"max_new_tokens": 2}, "ab", FinishReason.LENGTH),
    ],
)
def test_text_held_back_is_given_when_the_response_is_over(
    saying: Callable, ends: dict, text: str, reason: FinishReason
) -> None:
    pieces = answer(saying("ab#"), stop_strings=("##",), **ends)
    assert "".join(piece.text for piece in pieces) == text
    assert pieces[-1].finish_reason is reason


def test_prompt_that_fills_the_context_is_refused(saying: Callable) -> None:
    engine = saying("a", context_tokens=3)
    with pytest.raises(EngineError, match="3 tokens leaves no room in a context of 3"):
        next(generate(engine, [1, 2, 3], sampling=Sampling(), ends=Ends()))


def test_same_seed_gives_the_same_text(make_engine: Callable) -> None:
    def text(seed: int) -> list[int]:
        engine = make_engine(lambda sequence: np.zeros(256, dtype=np.float32))
        sampling = Sampling(temperature=1.0, seed=seed)
        return [
            piece.token_id
            for piece in generate(engine, [65], sampling=sampling, ends=Ends(max_new_tokens=12))
        ]

    assert text(1) == text(1) != text(2)


def test_penalty_sees_the_prompt(make_engine: Callable) -> None:
    logits = np.zeros(256, dtype=np.float32)
    logits[[65, 66]] = 3, 2
    pieces = generate(
        make_engine(lambda sequence: logits),
        [65],
        sampling=Sampling(repetition_penalty=2.0),
        ends=Ends(max_new_tokens=2),
    )
    assert [piece.token_id for piece in pieces] == [66, 65]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_new_tokens": 0}, "cannot answer in `0` tokens"),
        ({"stop_strings": ("a", "")}, "string is empty"),
    ],
)
def test_meaningless_ends_are_refused(values: dict, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Ends(**values)
