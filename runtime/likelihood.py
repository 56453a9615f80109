"""How likely a model finds given text, on any engine: continuations of a context, and whole texts in windows.

Everything is in token ids. Logarithms are natural, computed and summed in float64 from the engine's float32 logits.

A text longer than the context is read in windows, each a sequence of its own; every token counts once. The first window
scores all its tokens. Each later one begins so much further on that it ends `stride_tokens` after the one before it
and scores only those new tokens, with everything before them in the window as their context. So a token of a later
window is conditioned on at least `window_tokens - stride_tokens + 1` tokens before it and at most on `window_tokens`;
the last window is moved back until it is full. With `stride_tokens = window_tokens` that is what lm-evaluation-harness
calls a rolling log-likelihood, with fewer it is the strided perplexity of transformers' documentation.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ammd.errors import EngineError

from .engine import Engine

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .engine import Logits

_BLOCK_POSITIONS = (
    4  # whose float64 probabilities exist at once: 4 x 49,152 x 8 bytes = 1.6 MB stay in a cache
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Likelihood:
    """What a model makes of a sequence of tokens."""

    token_logprobs: tuple[float, ...]  # nats, each given all tokens before it
    greedy: tuple[bool, ...]  # whether each was the likeliest token at its place

    @property
    def logprob(self) -> float:
        """Log-probability of the whole, in nats; 0 of nothing."""
        return math.fsum(self.token_logprobs)

    @property
    def is_greedy(self) -> bool:
        """Whether greedy decoding would have written it, token for token."""
        return all(self.greedy)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextNats:
    """Log-likelihood of texts with what it is to be divided by. Sums over several texts are perplexities of all."""

    nats: float  # sum of -log p over the scored tokens
    tokens: int  # that were scored
    words: int  # runs of characters between white space, as lm-evaluation-harness counts them
    bytes: int  # of the text in UTF-8

    @property
    def token_perplexity(self) -> float:
        """Of tokens, so only for models of one tokenizer."""
        return perplexity(self.nats, self.tokens)

    @property
    def word_perplexity(self) -> float:
        """Of words."""
        return perplexity(self.nats, self.words)

    @property
    def byte_perplexity(self) -> float:
        """Of bytes."""
        return perplexity(self.nats, self.bytes)

    @property
    def bits_per_byte(self) -> float:
        """Also across tokenizers."""
        return bits(self.nats, self.bytes)


def perplexity(nats: float, units: float) -> float:
    """Return exp(nats / units); infinity where that is too large for a float."""
    try:
        return math.exp(nats / units)
    except OverflowError:
        return math.inf


def bits(nats: float, units: float) -> float:
    """Return nats / units / ln 2."""
    return nats / units / math.log(2)


@dataclass(frozen=True, slots=True)
class Window:
    """A part of a sequence that is read at once: tokens `begin` to `end`, whose successors from `first` on count."""

    begin: int
    first: int  # first token whose successor is scored
    end: int  # one after the last token that is read; its successor is the last that is scored


def score_continuations(
    engine: Engine, context_ids: Sequence[int], continuations: Sequence[Sequence[int]]
) -> list[Likelihood]:
    """Return how likely each continuation is after the context.

    Continuations of one token (`yes`, `no`, the letter of a choice) all come from one reading of the context; each
    longer one is read with its context. Every token is conditioned on the whole context and what precedes it in its own
    continuation. An end token is none unless the continuation has one.

    Args:
        engine: Its running sequence is lost.
        context_ids: At least one token: a rendered prompt, or the token that begins a text.
        continuations: Token ids; an empty one has log-probability 0.

    Raises:
        EngineError: The context is empty, context and continuation do not fit, or logits are no numbers.
    """
    found: dict[tuple[int, ...], Likelihood] = {(): Likelihood(token_logprobs=(), greedy=())}
    asked = [tuple(one) for one in continuations]
    if any(len(one) == 1 for one in asked):
        row = engine.prefill(context_ids)[None].copy()
        found |= {one: _likelihood([row], one) for one in set(asked) if len(one) == 1}
    for one in asked:
        if one not in found:
            read = engine.logits([*context_ids, *one[:-1]], start=len(context_ids) - 1)
            found[one] = _likelihood(read, one)
    return [found[one] for one in asked]


def score_text(
    engine: Engine,
    text: str,
    *,
    window_tokens: int,
    stride_tokens: int | None = None,
    prefix_ids: Sequence[int] | None = None,
) -> TextNats:
    """Return the log-likelihood of a text that may be longer than the context.

    Args:
        engine: Opened for at least `window_tokens`.
        text: Plain text, not rendered as a chat.
        window_tokens: Tokens that are read at once.
        stride_tokens: New tokens of each further window; None takes all of it, the cheapest.
        prefix_ids: What the text's first token is conditioned on; it counts in the window but is not scored. None
            takes `first_ids`. With none, empty, the text's own first token is read but not scored.

    Raises:
        EngineError: The text has no token to score, or the engine failed.
    """
    prefix = list(first_ids(engine) if prefix_ids is None else prefix_ids)
    token_ids = prefix + engine.tokenize(text)
    given = max(1, len(prefix))
    scored = len(token_ids) - given
    if scored < 1:
        raise EngineError(f"the text {text[:40]!r} has no token that could be scored")
    nats = [
        -logprob
        for window in text_windows(
            len(token_ids), given=given, window_tokens=window_tokens, stride_tokens=stride_tokens
        )
        for logprob in _read_window(engine, token_ids, window)
    ]
    return TextNats(
        nats=math.fsum(nats), tokens=scored, words=len(re.split(r"\s+", text)), bytes=len(text.encode())
    )


def first_ids(engine: Engine) -> list[int]:
    """Return what a text begins with: the model's BOS token; without one, an end token, which separates texts too."""
    if engine.bos_token_id is not None:
        return [engine.bos_token_id]
    return sorted(engine.end_token_ids)[:1]


def text_windows(
    tokens: int, *, given: int, window_tokens: int, stride_tokens: int | None = None
) -> Iterator[Window]:
    """Give the windows in which a sequence of `tokens` is read, of which the first `given` are not scored.

    Raises:
        EngineError: A window does not hold what is given, or the stride is not between 1 and the window.
    """
    stride = window_tokens if stride_tokens is None else stride_tokens
    if not 1 <= given <= window_tokens or not 1 <= stride <= window_tokens:
        raise EngineError(
            f"cannot read text in windows of `{window_tokens}` tokens with a stride of `{stride}`",
            hint=f"the window holds at least the {given} tokens that are given, the stride is at most the window",
        )
    last = tokens - 1  # it is predicted and need not be read
    first, end = given - 1, min(window_tokens, last)
    while first < end:
        yield Window(max(0, end - window_tokens), first, end)
        first, end = end, min(end + stride, last)


def token_logprobs(rows: Logits, targets: Sequence[int]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return log p of each target in nats, and whether it has the largest logit (of equal ones, the lowest id).

    Args:
        rows: Logits that choose each target. float32 [T, V]; only read.
        targets: T token ids.

    Raises:
        EngineError: A logit is infinite or not a number.
    """
    import numpy as np

    chosen = np.asarray(targets)
    logprobs = np.empty(len(chosen))
    for start in range(0, len(chosen), _BLOCK_POSITIONS):
        block = slice(start, start + _BLOCK_POSITIONS)
        shifted = np.subtract(rows[block], rows[block].max(axis=-1, keepdims=True), dtype=np.float64)
        own = np.take_along_axis(shifted, chosen[block, None], axis=-1)[:, 0]
        logprobs[block] = own - np.log(np.exp(shifted, out=shifted).sum(axis=-1))
    if np.isnan(logprobs).any():
        raise EngineError(
            "the engine's logits are no numbers",
            hint="the file is damaged, or its numbers overflow in this engine: `ammd verify` tells",
        )
    return logprobs, rows.argmax(axis=-1) == chosen


def _read_window(engine: Engine, token_ids: Sequence[int], window: Window) -> tuple[float, ...]:
    targets = token_ids[window.first + 1 : window.end + 1]
    read = engine.logits(token_ids[window.begin : window.end], start=window.first - window.begin)
    return _likelihood(read, targets).token_logprobs


def _likelihood(chunks: Iterator[Logits] | Sequence[Logits], targets: Sequence[int]) -> Likelihood:
    """Return the likelihood of targets from the logits before each, in chunks [C, V]."""
    logprobs: list[float] = []
    greedy: list[bool] = []
    for rows in chunks:
        found, best = token_logprobs(rows, targets[len(logprobs) : len(logprobs) + len(rows)])
        logprobs += found.tolist()
        greedy += best.tolist()
    return Likelihood(token_logprobs=tuple(logprobs), greedy=tuple(greedy))
