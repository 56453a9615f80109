"""Stream a response from any engine: greedy, or sampled with temperature and top-p from a seed.

Sampling is numpy on the engine's logits. The likeliest tokens are found by partition before anything is
sorted: a full sort of 49,152 numbers at each token would cost as much as a small model's layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from ammd.errors import EngineError, RecipeError

from .engine import Engine

if TYPE_CHECKING:
    import numpy as np

    from .engine import Logits

_LIKELY_TOKENS = 256  # searched first for the top-p set


class FinishReason(Enum):
    """Why a response is over."""

    END_TOKEN = "end token"
    LENGTH = "length"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How a response is drawn."""

    max_new_tokens: int = 256
    temperature: float = 0.0  # 0 takes the likeliest token
    top_p: float = 1.0  # smallest set of likeliest tokens that holds this much probability

    def __post_init__(self) -> None:
        """Refuse values that have no meaning.

        Raises:
            RecipeError: A value is out of range.
        """
        if self.max_new_tokens < 1 or self.temperature < 0 or not 0 < self.top_p <= 1:
            raise RecipeError(
                f"cannot sample {self.max_new_tokens} tokens at temperature {self.temperature}, "
                f"top-p {self.top_p}",
                hint="tokens >= 1, temperature >= 0, 0 < top-p <= 1",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One token of a response."""

    token_id: int
    text: str  # what became readable with this token; may be empty
    finish_reason: FinishReason | None  # set on the last piece


def generate(
    engine: Engine, prompt_ids: Sequence[int], *, sampling: Sampling, generator: np.random.Generator
) -> Iterator[Piece]:
    """Give the response token by token.

    It ends with an end token, after `max_new_tokens`, or when the context is full.

    Args:
        engine: The model.
        prompt_ids: Rendered chat or plain text as token ids.
        sampling: How tokens are chosen.
        generator: Source of randomness; not used at temperature 0.

    Raises:
        EngineError: The prompt leaves no room in the context.
    """
    room = engine.context_tokens - len(prompt_ids)
    if room < 1:
        raise EngineError(
            f"a prompt of {len(prompt_ids)} tokens leaves no room in a context of {engine.context_tokens}",
            hint="shorten the prompt or ask for a larger context",
        )
    budget = min(sampling.max_new_tokens, room)
    readable = engine.text_stream()
    logits = engine.prefill(prompt_ids)
    for count in range(1, budget + 1):
        token = choose_token(logits, sampling=sampling, generator=generator)
        if token in engine.end_token_ids:
            yield Piece(token_id=token, text="", finish_reason=FinishReason.END_TOKEN)
            return
        reason = FinishReason.LENGTH if count == budget else None
        yield Piece(token_id=token, text=readable(token), finish_reason=reason)
        if reason is None:
            logits = engine.decode(token)


def choose_token(logits: Logits, *, sampling: Sampling, generator: np.random.Generator) -> int:
    """Return one token id drawn from float32 logits [V]."""
    import numpy as np

    if sampling.temperature == 0:
        return int(logits.argmax())
    scaled = logits.astype(np.float64) / sampling.temperature
    probs = np.exp(scaled - scaled.max())
    probs /= probs.sum()
    ids = np.arange(len(probs)) if sampling.top_p == 1 else _nucleus(probs, sampling.top_p)
    reached = probs[ids].cumsum()
    place = np.searchsorted(reached, generator.random() * reached[-1], side="right")
    return int(ids[min(place, len(ids) - 1)])  # rounding can reach the very end


def _nucleus(probs: np.ndarray, top_p: float) -> np.ndarray:
    """Return the ids of the smallest set of likeliest tokens whose probabilities reach `top_p`."""
    import numpy as np

    likely = min(_LIKELY_TOKENS, len(probs))
    while True:
        ids = np.argpartition(probs, -likely)[-likely:]
        ids = ids[np.argsort(probs[ids])[::-1]]
        reached = probs[ids].cumsum()
        if reached[-1] >= top_p or likely == len(probs):
            count = int(np.searchsorted(reached, top_p)) + 1
            return ids[:count]
        likely = len(probs)  # a flat distribution: rare, so sort it whole
