"""Stream a response from any engine, and say why it is over.

The engine gives logits, `sampling` chooses from them, and the text goes through the stop strings to the reader. An
interrupt is passed on: what was given until then is the text so far, and the reader knows that it was cut.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from ammd.errors import EngineError, RecipeError

from .engine import Engine
from .sampling import Sampler, Sampling
from .stop_strings import StopStrings


class FinishReason(Enum):
    """Why a response is over."""

    END_TOKEN = "end token"
    STOP_STRING = "stop string"
    LENGTH = "length"
    CONTEXT_FULL = "context full"
    CANCELLED = "cancelled"  # by whoever reads the pieces


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """Where a response ends, besides at an end token."""

    max_new_tokens: int = 256
    stop_strings: tuple[str, ...] = ()  # in the text as it is read: special tokens are not part of it

    def __post_init__(self) -> None:
        """Refuse values that have no meaning.

        Raises:
            RecipeError: No token may be said, or a stop string is empty.
        """
        if self.max_new_tokens < 1:
            raise RecipeError(f"cannot answer in `{self.max_new_tokens}` tokens", hint="at least 1")
        if "" in self.stop_strings:
            raise RecipeError("a stop string is empty", hint="at least one character")


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One token of a response."""

    token_id: int
    text: str  # what may be shown with this token; may be empty
    finish_reason: FinishReason | None  # set on the last piece


def generate(engine: Engine, prompt_ids: Sequence[int], *, sampling: Sampling, ends: Ends) -> Iterator[Piece]:
    """Give the response token by token.

    Text that may begin a stop string comes when it is known to be none, or with the last piece; the stop string
    itself is never given. Prompts of any length that fits are taken: engines read them in chunks.

    Args:
        engine: The model.
        prompt_ids: Rendered chat or plain text as token ids.
        sampling: How tokens are chosen; the same seed and logits give the same tokens in every engine.
        ends: Where the response ends.

    Raises:
        EngineError: The prompt leaves no room in the context, or no token can be chosen from the logits.
    """
    room = engine.context_tokens - len(prompt_ids)
    if room < 1:
        raise EngineError(
            f"a prompt of {len(prompt_ids)} tokens leaves no room in a context of {engine.context_tokens}",
            hint="shorten the prompt or ask for a larger context",
        )
    last = FinishReason.LENGTH if ends.max_new_tokens <= room else FinishReason.CONTEXT_FULL
    budget = min(ends.max_new_tokens, room)
    readable = engine.text_stream()
    stops = StopStrings(ends.stop_strings)
    sampler = Sampler(sampling, prompt_ids=prompt_ids)
    logits = engine.prefill(prompt_ids)
    for count in range(1, budget + 1):
        token = sampler.choose(logits)
        if token in engine.end_token_ids:
            yield Piece(token_id=token, text=stops.rest(), finish_reason=FinishReason.END_TOKEN)
            return
        text, stopped = stops.pass_on(readable(token))
        if stopped:
            yield Piece(token_id=token, text=text, finish_reason=FinishReason.STOP_STRING)
            return
        if count == budget:
            yield Piece(token_id=token, text=text + stops.rest(), finish_reason=last)
            return
        yield Piece(token_id=token, text=text, finish_reason=None)
        logits = engine.decode(token)
