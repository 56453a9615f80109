from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from ammd.errors import EngineError, RecipeError
from ammd.runtime.generate import FinishReason, Sampling, choose_token, generate

GREEDY = Sampling(max_new_tokens=20)


def test_greedy_text_stops_at_the_end_token(saying: Callable) -> None:
    pieces = list(generate(saying("grün"), [65], sampling=GREEDY, generator=np.random.default_rng(0)))
    assert "".join(piece.text for piece in pieces) == "grün"
    assert pieces[-1].finish_reason is FinishReason.END_TOKEN
    assert all(piece.finish_reason is None for piece in pieces[:-1])


def test_character_of_two_tokens_appears_whole(saying: Callable) -> None:
    pieces = list(generate(saying("ü"), [65], sampling=GREEDY, generator=np.random.default_rng(0)))
    assert [piece.text for piece in pieces] == ["", "ü", ""]


def test_length_limit_ends_a_response(saying: Callable) -> None:
    sampling = Sampling(max_new_tokens=3)
    pieces = list(generate(saying("abcdef"), [65], sampling=sampling, generator=np.random.default_rng(0)))
    assert [piece.text for piece in pieces] == ["a", "b", "c"]
    assert pieces[-1].finish_reason is FinishReason.LENGTH


def test_full_context_ends_a_response(saying: Callable) -> None:
    engine = saying("abcdef", context_tokens=3)
    pieces = list(generate(engine, [65], sampling=GREEDY, generator=np.random.default_rng(0)))
    assert "".join(piece.text for piece in pieces) == "ab"


def test_prompt_that_fills_the_context_is_refused(saying: Callable) -> None:
    with pytest.raises(EngineError, match="3 tokens leaves no room in a context of 3"):
        next(
            generate(
                saying("a", context_tokens=3),
                [1, 2, 3],
                sampling=GREEDY,
                generator=np.random.default_rng(0),
            )
        )


def test_temperature_zero_takes_the_likeliest() -> None:
    logits = np.array([0, 3, 1], dtype=np.float32)
    assert choose_token(logits, sampling=GREEDY, generator=np.random.default_rng(0)) == 1


def test_sampled_frequencies_follow_the_distribution() -> None:
    probs = np.array([0.5, 0.3, 0.2])
    counts = frequencies(np.log(probs), Sampling(temperature=1.0))
    # 3 standard deviations of 4000 draws
    np.testing.assert_allclose(counts, probs, atol=0.024)


def test_temperature_sharpens() -> None:
    probs = np.array([0.5, 0.3, 0.2])
    expected = probs**2 / (probs**2).sum()
    np.testing.assert_allclose(frequencies(np.log(probs), Sampling(temperature=0.5)), expected, atol=0.024)


def test_top_p_keeps_the_smallest_sufficient_set() -> None:
    probs = np.array([0.2, 0.5, 0.3])
    counts = frequencies(np.log(probs), Sampling(temperature=1.0, top_p=0.6))
    np.testing.assert_allclose(counts, [0, 0.625, 0.375], atol=0.024)  # 3 standard deviations


def test_top_p_reaches_beyond_the_first_partition() -> None:
    # 1000 equal tokens: 0.9 needs 900 of them, more than are searched first
    rng = np.random.default_rng(0)
    sampling = Sampling(temperature=1.0, top_p=0.9)
    drawn = {choose_token(np.zeros(1000, np.float32), sampling=sampling, generator=rng) for _ in range(4000)}
    assert 600 < len(drawn) <= 900


def test_same_seed_gives_the_same_text(make_engine: Callable) -> None:
    def text(seed: int) -> list[int]:
        engine = make_engine(lambda sequence: np.zeros(256, dtype=np.float32))
        sampling = Sampling(max_new_tokens=12, temperature=1.0)
        pieces = generate(engine, [65], sampling=sampling, generator=np.random.default_rng(seed))
        return [piece.token_id for piece in pieces]

    assert text(1) == text(1) != text(2)


@pytest.mark.parametrize("values", [{"max_new_tokens": 0}, {"temperature": -1}, {"top_p": 0}, {"top_p": 1.5}])
def test_meaningless_sampling_is_refused(values: dict) -> None:
    with pytest.raises(RecipeError, match="cannot sample"):
        Sampling(**values)


def frequencies(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    rng = np.random.default_rng(0)
    drawn = [choose_token(logits.astype(np.float32), sampling=sampling, generator=rng) for _ in range(4000)]
    return np.bincount(drawn, minlength=len(logits)) / len(drawn)
