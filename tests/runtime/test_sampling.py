"""The filters against transformers' own, the draws against the probabilities."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from ammd.errors import EngineError, RecipeError
from ammd.runtime.sampling import Sampler, Sampling, weigh_tokens

VOCAB = 500
SEEN = [3, 3, 77, 499, 0, 250]
SETTINGS = [
    Sampling(temperature=1.0),
    Sampling(temperature=0.3),
    Sampling(temperature=1.7, top_k=40),
    Sampling(temperature=1.0, top_k=1),
    Sampling(temperature=1.0, top_k=20),
    Sampling(temperature=1.0, top_k=31),
    Sampling(temperature=1.0, top_k=VOCAB - 1),
    Sampling(temperature=1.0, top_k=VOCAB + 1),
    Sampling(temperature=1.0, top_p=0.9),
    Sampling(temperature=0.7, top_p=0.05),
    Sampling(temperature=2.0, top_p=0.999),
    Sampling(temperature=1.5, min_p=0.1),
    Sampling(temperature=1.0, min_p=1.0),
    Sampling(temperature=1.0, repetition_penalty=1.3),
    Sampling(temperature=1.0, repetition_penalty=0.5),
    Sampling(temperature=0.8, top_k=60, top_p=0.8, min_p=0.05, repetition_penalty=1.2),
    Sampling(temperature=3.0, top_k=400, top_p=0.95, min_p=0.02, repetition_penalty=5.0),
]


@pytest.mark.parametrize("spread", [0.5, 3.0, 12.0])
@pytest.mark.parametrize("sampling", SETTINGS)
def test_allowed_tokens_and_probabilities_are_those_of_transformers(
    sampling: Sampling, spread: float
) -> None:
    for seed in range(5):
        logits = some_logits(seed=seed, spread=spread)
        ids, probs = allowed_tokens(logits, sampling=sampling, seen=mask(SEEN))
        expected = transformers_probs(logits, sampling)
        np.testing.assert_array_equal(ids, np.flatnonzero(expected))
        np.testing.assert_allclose(probs, expected[ids], rtol=1e-9)  # both in float64


def test_tokens_that_the_engine_forbids_are_never_allowed_by_top_k() -> None:
    logits = np.full(6, -np.inf, dtype=np.float32)
    logits[[1, 4]] = 1, 2
    _, probs = allowed_tokens(logits, sampling=Sampling(temperature=1.0, top_k=4))
    assert np.count_nonzero(probs) == 2


def test_ties_at_the_border_of_top_k_all_stay_as_in_transformers() -> None:
    logits = np.array([1, 2, 2, 3, 2, 0], dtype=np.float32)
    sampling = Sampling(temperature=1.0, top_k=2)
    ids, _ = allowed_tokens(logits, sampling=sampling)
    assert ids.tolist() == [1, 2, 3, 4] == np.flatnonzero(transformers_probs(logits, sampling)).tolist()


def test_ties_at_the_border_of_top_p_go_to_the_lower_ids() -> None:
    logits = np.zeros(1000, dtype=np.float32)
    logits[700] = np.log(100)  # 100 of 1099
    ids, probs = allowed_tokens(logits, sampling=Sampling(temperature=1.0, top_p=0.5))
    assert ids.tolist() == [*range(450), 700]  # 100 + 450 >= 549.5 > 100 + 449
    assert probs[-1] == pytest.approx(100 / 550)


def test_top_p_of_nearly_all_keeps_all_and_of_nearly_nothing_the_likeliest() -> None:
    logits = some_logits(seed=1, spread=2.0)
    most = Sampling(temperature=1.0, top_p=float(np.nextafter(1, 0)))
    assert len(allowed_tokens(logits, sampling=most)[0]) == VOCAB
    least = Sampling(temperature=1.0, top_p=5e-324)
    assert allowed_tokens(logits, sampling=least)[0].tolist() == [logits.argmax()]


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0),
        Sampling(temperature=1.3, top_k=20, top_p=0.95, min_p=0.01),
        Sampling(temperature=0.9, top_p=0.9),
    ],
)
def test_frequencies_of_draws_pass_a_chi_square_test(sampling: Sampling) -> None:
    draws = 20_000
    logits = some_logits(seed=5, spread=1.0)[:50]
    ids, probs = allowed_tokens(logits, sampling=sampling)
    sampler = Sampler(sampling)
    counts = np.bincount([sampler.choose(logits) for _ in range(draws)], minlength=50)
    assert counts.sum() == counts[ids].sum()
    deviation = ((counts[ids] - draws * probs) ** 2 / (draws * probs)).sum()
    # Wilson and Hilferty's bound, which a right sampler passes with all but one seed in a thousand
    freedom = len(ids) - 1
    assert deviation < freedom * (1 - 2 / (9 * freedom) + 3.09 * (2 / (9 * freedom)) ** 0.5) ** 3


def test_a_token_without_probability_is_never_drawn() -> None:
    logits = np.array([-np.inf, 0, -2000, -np.inf], dtype=np.float32)
    sampler = Sampler(Sampling(temperature=1.0))
    assert {sampler.choose(logits) for _ in range(500)} == {1}


@pytest.mark.parametrize("number", [0.0, 1 - 2**-53])
def test_extremes_of_the_generator_draw_no_forbidden_token(
    number: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Constant:
        def random(self) -> float:
            return number

    monkeypatch.setattr(np.random, "default_rng", lambda seed: Constant())
    logits = np.array([-np.inf, *[0.1] * 7, -np.inf], dtype=np.float32)
    assert Sampler(Sampling(temperature=0.3)).choose(logits) == (7 if number else 1)


def test_temperature_zero_takes_the_likeliest_whatever_the_filters() -> None:
    sampler = Sampler(Sampling(top_k=3, top_p=0.5, min_p=0.3, seed=9))
    for seed in range(20):
        logits = some_logits(seed=seed, spread=1.0)
        assert sampler.choose(logits) == logits.argmax()


def test_equal_likeliest_tokens_give_the_lowest_id() -> None:
    assert Sampler(Sampling()).choose(np.array([0, 4, 1, 4], dtype=np.float32)) == 1


def test_penalty_moves_the_greedy_choice_as_in_transformers() -> None:
    sampling = Sampling(repetition_penalty=2.0)
    logits = np.array([3, 2, -1, 0.5], dtype=np.float32)
    sampler = Sampler(sampling, prompt_ids=[0])
    assert [sampler.choose(logits) for _ in range(3)] == [1, 0, 0]  # 2 > 1.5; then 1.5 > 1


def test_penalty_counts_prompt_and_answer_so_far() -> None:
    sampling = Sampling(temperature=1.0, repetition_penalty=1.5)
    sampler, said = Sampler(sampling, prompt_ids=[7, 8]), [7, 8]
    twin = np.random.default_rng(0)
    for seed in range(30):
        logits = some_logits(seed=seed, spread=2.0)
        expected = transformers_probs(logits, sampling, said=said).cumsum()
        token = sampler.choose(logits)
        assert token == expected.searchsorted(twin.random() * expected[-1], side="right")
        said.append(token)


def test_same_seed_and_logits_give_the_same_tokens_from_any_kind_of_array() -> None:
    rows = [some_logits(seed=seed, spread=2.0) for seed in range(50)]
    backing = np.zeros((50, 2 * VOCAB), dtype=np.float32)
    backing[:, ::2] = rows
    sampling = Sampling(temperature=1.0, top_k=100, top_p=0.9, min_p=0.01, repetition_penalty=1.1, seed=4)

    def tokens(arrays: list[np.ndarray], **changes: int) -> list[int]:
        sampler = Sampler(dataclasses.replace(sampling, **changes), prompt_ids=SEEN)
        return [sampler.choose(array) for array in arrays]

    assert tokens(rows) == tokens([backing[row, ::2] for row in range(50)])
    assert tokens(rows) != tokens(rows, seed=5)


@pytest.mark.parametrize("sampling", [Sampling(repetition_penalty=1.5), *SETTINGS])
def test_the_engines_array_is_only_read(sampling: Sampling) -> None:
    logits = some_logits(seed=0, spread=1.0)
    logits.flags.writeable = False
    assert 0 <= Sampler(sampling, prompt_ids=SEEN).choose(logits) < VOCAB


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(repetition_penalty=1.1),
        Sampling(temperature=1.0),
        Sampling(temperature=1.0, top_k=2, top_p=0.9, min_p=0.1, repetition_penalty=1.1),
    ],
)
@pytest.mark.parametrize(
    "logits", [[-np.inf] * 3, [0, np.nan, 1], [np.nan] * 3, [0, np.inf, 1], [0, np.inf, np.inf]], ids=str
)
def test_logits_without_a_finite_maximum_are_refused(sampling: Sampling, logits: list[float]) -> None:
    with pytest.raises(EngineError, match=r"largest logit is `(nan|-?inf)`"):
        Sampler(sampling, prompt_ids=[0]).choose(np.array(logits, dtype=np.float32))


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e300])
def test_extreme_settings_give_no_nan(temperature: float) -> None:
    largest = np.finfo(np.float32).max
    logits = np.array([largest, -largest, 1, -np.inf, 1e-40], dtype=np.float32)
    for penalty in (0.01, 100.0):
        sampling = Sampling(temperature=temperature, top_p=0.99, min_p=1e-9, repetition_penalty=penalty)
        ids, probs = allowed_tokens(logits, sampling=sampling, seen=np.ones(5, dtype=np.bool_))
        assert 0 in ids
        assert probs.sum() == pytest.approx(1)


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -1},
        {"temperature": float("inf")},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0},
        {"top_p": 1.5},
        {"min_p": -0.1},
        {"min_p": 1.1},
        {"repetition_penalty": 0},
        {"repetition_penalty": 101},
        {"seed": -1},
    ],
)
def test_meaningless_settings_are_refused_by_name(values: dict) -> None:
    ((name, value),) = values.items()
    with pytest.raises(RecipeError, match=f"`{name}` = `{value}`"):
        Sampling(**values)


def some_logits(*, seed: int, spread: float) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=spread, size=VOCAB).astype(np.float32)


def allowed_tokens(
    logits: np.ndarray, *, sampling: Sampling, seen: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    ids, weights = weigh_tokens(logits, sampling=sampling, seen=seen)
    return np.arange(len(logits)) if ids is None else ids, weights / weights.sum()


def mask(ids: list[int]) -> np.ndarray:
    seen = np.zeros(VOCAB, dtype=np.bool_)
    seen[ids] = True
    return seen


def transformers_probs(logits: np.ndarray, sampling: Sampling, *, said: list[int] = SEEN) -> np.ndarray:
    """Run transformers' processors in its own order, in float64."""
    import torch
    from transformers import (
        LogitsProcessorList,
        MinPLogitsWarper,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    processors = LogitsProcessorList()
    if sampling.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    processors.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        processors.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        processors.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        processors.append(MinPLogitsWarper(sampling.min_p))
    scores = torch.from_numpy(logits.astype(np.float64))[None]
    return processors(torch.tensor([said]), scores)[0].softmax(-1).numpy()
