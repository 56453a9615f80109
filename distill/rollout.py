"""Sample responses from a model: any number of prompts, in batches, reproducibly from a generator.

Prompts are sorted by length and cut into batches (`ammd.batch_decoding` runs one). The same seed gives the same
text on one machine and thread count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ammd.batch_decoding import decode_batch, draw, draw_mixed

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How responses are drawn."""

    max_new_tokens: int
    temperature: float  # 0 takes the likeliest token
    end_token_ids: tuple[int, ...]
    batch_size: int


def sample_responses(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    sampling: Sampling,
    randomness: torch.Generator | torch.Tensor,
    on_tokens: Callable[[int, int], None] = lambda _prompts, _tokens: None,
    on_states: Callable[[int, torch.Tensor], None] | None = None,
) -> list[list[int]]:
    """Return one response for each prompt, in the order of `prompts`, end token included where drawn.

    Args:
        model: Causal language model in the dtype it should run in, with a plain head (`Policy` checks that).
        prompts: Token ids of each prompt, none empty.
        sampling: Length, temperature, end tokens, rows a batch.
        randomness: A generator; or all numbers, uniform from 0 to below 1, [prompts, max_new_tokens], with which a
            prompt's response does not depend on the prompts beside it. Not used at temperature 0.
        on_tokens: Called after each batch with prompts finished and tokens drawn so far.
        on_states: Called once for each prompt, in no order, with its index and the final hidden states
            [response tokens, H] from which its response was drawn.
    """
    responses: list[list[int]] = [[] for _ in prompts]
    tokens = done = 0
    for rows in _batches(prompts, sampling.batch_size):
        numbers = _Numbers(randomness, rows)

        def choose(logits: torch.Tensor, alive: torch.Tensor, numbers: _Numbers = numbers) -> torch.Tensor:
            return draw(logits, temperature=sampling.temperature, uniform=numbers.take(alive))

        drawn, states = decode_batch(
            model,
            [prompts[row] for row in rows],
            max_new_tokens=sampling.max_new_tokens,
            end_token_ids=sampling.end_token_ids,
            choose=choose,
            keep_states=on_states is not None,
        )
        for place, (row, response) in enumerate(zip(rows, drawn, strict=True)):
            responses[row] = response
            tokens += len(response)
            if on_states and states is not None:
                on_states(row, states[place, : len(response)])
        done += len(rows)
        on_tokens(done, tokens)
    return responses


def sample_mixed(
    model: PreTrainedModel,
    guide: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    sampling: Sampling,
    guide_share: float,
    randomness: torch.Generator | torch.Tensor,
) -> list[tuple[list[int], torch.Tensor]]:
    """Return a response for each prompt, drawn token by token from a mixture of both models at temperature 1.

    With each response come its tokens' log-probabilities under the mixture, float32 [response tokens]. `randomness`
    is that of `sample_responses`.
    """
    found: list[tuple[list[int], torch.Tensor]] = [([], torch.empty(0))] * len(prompts)
    for rows in _batches(prompts, sampling.batch_size):
        logprobs: list[list[float]] = [[] for _ in rows]
        numbers = _Numbers(randomness, rows)

        def choose(
            logits: torch.Tensor,
            alive: torch.Tensor,
            kept: list[list[float]] = logprobs,
            numbers: _Numbers = numbers,
        ) -> torch.Tensor:
            drawn, values = draw_mixed(logits, guide_share=guide_share, uniform=numbers.take(alive))
            for place, value in zip(alive.tolist(), values.tolist(), strict=True):
                kept[place].append(value)
            return drawn

        responses, _ = decode_batch(
            model,
            [prompts[row] for row in rows],
            max_new_tokens=sampling.max_new_tokens,
            end_token_ids=sampling.end_token_ids,
            choose=choose,
            guide=guide,
        )
        for row, response, values in zip(rows, responses, logprobs, strict=True):
            found[row] = response, torch.tensor(values[: len(response)])
    return found


class _Numbers:
    """The random numbers of one batch, token by token."""

    def __init__(self, randomness: torch.Generator | torch.Tensor, rows: Sequence[int]) -> None:
        self._randomness, self._rows = randomness, torch.tensor(rows)
        self._taken = 0

    def take(self, alive: torch.Tensor) -> torch.Tensor:
        """Return the next number of each row still there. Float32 [rows]."""
        self._taken += 1
        if isinstance(self._randomness, torch.Generator):
            return torch.rand(len(alive), generator=self._randomness)
        return self._randomness[self._rows[alive], self._taken - 1]


def _batches(prompts: Sequence[Sequence[int]], size: int) -> Iterator[list[int]]:
    """Yield the indices of batches of like length, the longest first."""
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]), reverse=True)
    for start in range(0, len(order), size):
        yield order[start : start + size]
