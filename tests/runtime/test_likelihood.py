from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from ammd.errors import EngineError
from ammd.runtime.engine import open_engine
from ammd.runtime.likelihood import (
    TextNats,
    first_ids,
    score_continuations,
    score_text,
    text_windows,
    token_logprobs,
)
from ammd.runtime.torch_engine import TorchEngine

CONTEXT = [1, 9, 20, 33]
CONTINUATIONS = [[40], [41], [40, 50, 60], [], [40, 50], [2]]
TEXT = "the thing and another, in a name; 365 of them.\nUnd Größe: ß"


@pytest.fixture(scope="module")
def torch_logprobs(tiny_checkpoint: Path) -> Callable[[list[int]], np.ndarray]:
    """transformers' log-softmax after each token of a sequence, in float64."""
    import torch

    with TorchEngine(tiny_checkpoint, threads=1, context_tokens=64) as engine:
        model = engine.model

    def logprobs(ids: list[int]) -> np.ndarray:
        with torch.inference_mode():
            return model(torch.tensor([ids])).logits[0].double().log_softmax(-1).numpy()

    return logprobs


@pytest.mark.parametrize("model", ["tiny_checkpoint", "tiny_gguf", "tiny_onnx", "tiny_standard_onnx"])
def test_continuations_have_transformers_log_probabilities_on_every_engine(
    model: str, torch_logprobs: Callable[[list[int]], np.ndarray], request: pytest.FixtureRequest
) -> None:
    with open_engine(Path(request.getfixturevalue(model)), threads=1, context_tokens=64) as engine:
        found = score_continuations(engine, CONTEXT, CONTINUATIONS)
    for one, continuation in zip(found, CONTINUATIONS, strict=True):
        expected = torch_logprobs([*CONTEXT, *continuation])[len(CONTEXT) - 1 : -1]
        own = [float(row[token]) for row, token in zip(expected, continuation, strict=False)]
        assert one.token_logprobs == pytest.approx(own, abs=2e-4)  # float32 arithmetic of four engines
        assert one.logprob == pytest.approx(sum(own), abs=1e-3)
        best = [int(row.argmax()) for row in expected]
        assert list(one.greedy) == [a == b for a, b in zip(best, continuation, strict=False)]


def test_what_greedy_decoding_writes_is_greedy(
    tiny_checkpoint: Path, torch_logprobs: Callable[[list[int]], np.ndarray]
) -> None:
    said: list[int] = []
    for _ in range(3):
        said.append(int(torch_logprobs([*CONTEXT, *said])[-1].argmax()))
    other = [*said[:2], (said[2] + 1) % 200]
    with TorchEngine(tiny_checkpoint, threads=1, context_tokens=64) as engine:
        greedy, not_greedy = score_continuations(engine, CONTEXT, [said, other])
    assert greedy.is_greedy
    assert not_greedy.greedy == (True, True, False)
    assert not not_greedy.is_greedy


def test_continuations_of_one_length_share_all_probability(make_engine: Callable[..., object]) -> None:
    """A toy of two tokens: the probabilities of all its sequences of three are enumerated."""

    def rule(sequence: list[int]) -> np.ndarray:
        return np.array([0.3 * len(sequence), math.sin(sum(sequence))], dtype=np.float32)

    every = [list(one) for one in itertools.product((0, 1), repeat=3)]
    found = score_continuations(make_engine(rule), [1], every)
    assert math.fsum(math.exp(one.logprob) for one in found) == pytest.approx(1, abs=1e-12)
    assert sum(one.is_greedy for one in found) == 1
    for one, sequence in zip(found, every, strict=True):
        product = 1.0
        for place, token in enumerate(sequence):
            weights = np.exp(rule([1, *sequence[:place]]).astype(np.float64))
            product *= weights[token] / weights.sum()
        assert math.exp(one.logprob) == pytest.approx(product, rel=1e-12)


def test_short_continuations_read_the_context_once(make_engine: Callable[..., object]) -> None:
    engine = make_engine(lambda sequence: np.arange(5, dtype=np.float32))
    engine.logits = None  # never asked
    found = score_continuations(engine, [1, 2, 3], [[0], [4], [2], [4]])
    assert engine.prompts == [[1, 2, 3]]
    assert [one.is_greedy for one in found] == [False, True, False, True]


@pytest.mark.parametrize(
    ("tokens", "given", "window", "stride"),
    [(10, 1, 4, 4), (11, 1, 4, 2), (9, 1, 4, 1), (4, 1, 16, 16), (12, 3, 5, 3), (2, 1, 1, 1)],
)
def test_windows_score_every_token_once_with_the_context_that_is_promised(
    tokens: int, given: int, window: int, stride: int
) -> None:
    windows = list(text_windows(tokens, given=given, window_tokens=window, stride_tokens=stride))
    scored = [place + 1 for one in windows for place in range(one.first, one.end)]
    assert scored == list(range(given, tokens))
    for number, one in enumerate(windows):
        assert one.end - one.begin <= window
        if number:
            assert one.end - one.begin == window
            for place in range(one.first, one.end):
                assert window - stride + 1 <= place + 1 - one.begin <= window
        else:
            assert one.begin == 0


def test_windows_are_those_of_a_rolling_log_likelihood() -> None:
    """The worked example in lm-evaluation-harness: ten tokens, windows of four, after a prefix at place 0."""
    windows = list(text_windows(11, given=1, window_tokens=4))
    assert [(one.begin, one.end, one.first) for one in windows] == [(0, 4, 0), (4, 8, 4), (6, 10, 8)]


@pytest.mark.parametrize("window", [8, 12, 64])
def test_a_text_in_windows_is_what_transformers_gives_for_each_of_them(
    tiny_checkpoint: Path, torch_logprobs: Callable[[list[int]], np.ndarray], window: int
) -> None:
    with TorchEngine(tiny_checkpoint, threads=1, context_tokens=64) as engine:
        found = score_text(engine, TEXT, window_tokens=window, stride_tokens=5)
        ids = [*first_ids(engine), *engine.tokenize(TEXT)]
    assert ids[0] == 1
    scored, end, nats = 0, min(window, len(ids) - 1), 0.0
    while scored < end:
        begin = max(0, end - window)
        rows = torch_logprobs(ids[begin:end])
        nats -= sum(float(rows[place - begin, ids[place + 1]]) for place in range(scored, end))
        scored, end = end, min(end + 5, len(ids) - 1)
    assert found.nats == pytest.approx(nats, abs=1e-3)
    assert found.tokens == len(ids) - 1
    assert found.bytes == len(TEXT.encode()) == len(TEXT) + 3
    assert found.words == 13


def test_a_uniform_model_has_the_perplexities_of_its_vocabulary(make_engine: Callable[..., object]) -> None:
    engine = make_engine(lambda sequence: np.zeros(256, dtype=np.float32))
    found = score_text(engine, "ab cdefg", window_tokens=4)
    assert (found.tokens, found.words, found.bytes) == (8, 2, 8)
    assert found.token_perplexity == pytest.approx(256)
    assert found.byte_perplexity == pytest.approx(256)
    assert found.bits_per_byte == pytest.approx(8)
    assert found.word_perplexity == pytest.approx(256**4)


def test_without_anything_before_it_the_first_token_is_not_scored(make_engine: Callable[..., object]) -> None:
    engine = make_engine(lambda sequence: np.zeros(256, dtype=np.float32))
    assert score_text(engine, "abc", window_tokens=8, prefix_ids=[]).tokens == 2
    with pytest.raises(EngineError, match="no token that could be scored"):
        score_text(engine, "a", window_tokens=8, prefix_ids=[])


def test_logprobs_are_float64_and_refuse_what_is_no_number() -> None:
    rows = np.random.default_rng(0).normal(0, 30, size=(9, 1000)).astype(np.float32)
    targets = list(range(9))
    found, _ = token_logprobs(rows, targets)
    for row, target, logprob in zip(rows, targets, found, strict=True):
        exact = math.log(math.fsum(math.exp(float(x) - float(row.max())) for x in row))
        assert logprob == pytest.approx(float(row[target]) - float(row.max()) - exact, abs=1e-12)
    rows[3, 7] = np.nan
    with pytest.raises(EngineError, match="no numbers"):
        token_logprobs(rows, targets)


def test_a_stride_longer_than_the_window_is_refused() -> None:
    with pytest.raises(EngineError, match="stride of `9`"):
        list(text_windows(20, given=1, window_tokens=8, stride_tokens=9))


def test_sums_over_texts_are_perplexities_of_all() -> None:
    text = TextNats(nats=8 * math.log(2), tokens=4, words=2, bytes=8)
    assert (text.token_perplexity, text.word_perplexity) == (pytest.approx(4), pytest.approx(16))
    assert text.bits_per_byte == pytest.approx(1)
