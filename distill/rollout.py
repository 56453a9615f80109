"""Sample responses from a model: many prompts at once, with a KV cache, reproducibly from a generator.

Prompts are sorted by length and cut into batches, padded on the left; what all prompts of a batch begin with is run
once. Rows that have ended leave the batch (their cache rows too), so that a few long answers do not keep paying for
the short ones. Logits exist for the last position only. The same seed gives the same text on one machine and thread
count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .batches import shared_tokens
from .kv_cache import build_cache, cache_argument, has_plain_cache

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Rows are dropped in one go when this share of the batch has ended: compacting copies the cache.
_COMPACT_SHARE = 0.25


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
    generator: torch.Generator,
    on_tokens: Callable[[int, int], None] = lambda _prompts, _tokens: None,
    on_states: Callable[[int, torch.Tensor], None] | None = None,
) -> list[list[int]]:
    """Return one response for each prompt, in the order of `prompts`, end token included where drawn.

    Args:
        model: Causal language model in the dtype it should run in, with a plain head (`Policy` checks that).
        prompts: Token ids of each prompt, none empty.
        sampling: Length, temperature, end tokens, rows a batch.
        generator: Source of randomness; not used at temperature 0.
        on_tokens: Called after each batch with prompts finished and tokens drawn so far.
        on_states: Called once for each prompt, in no order, with its index and the final hidden states
            [response tokens, H] from which its response was drawn.
    """
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]), reverse=True)
    responses: list[list[int]] = [[] for _ in prompts]
    tokens = 0
    for start in range(0, len(order), sampling.batch_size):
        rows = order[start : start + sampling.batch_size]
        drawn, states = _sample_batch(
            model, [prompts[row] for row in rows], sampling, generator, keep_states=on_states is not None
        )
        for place, (row, response) in enumerate(zip(rows, drawn, strict=True)):
            responses[row] = response
            tokens += len(response)
            if on_states and states is not None:
                on_states(row, states[place, : len(response)])
        on_tokens(start + len(rows), tokens)
    return responses


@torch.inference_mode()
def _sample_batch(
    model: PreTrainedModel,
    prompts: list[Sequence[int]],
    sampling: Sampling,
    generator: torch.Generator,
    *,
    keep_states: bool,
) -> tuple[list[list[int]], torch.Tensor | None]:
    """Return responses and, where asked for, the states that they were drawn from. [B, longest, H]."""
    shared = shared_tokens(prompts) if len(prompts) > 1 and has_plain_cache(model) else 0
    width = max(map(len, prompts)) - shared
    token_ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros(len(prompts), width, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        start = width - len(prompt) + shared
        token_ids[row, start:] = torch.tensor(prompt[shared:])
        mask[row, start:] = 1
    ends = torch.tensor(sampling.end_token_ids)
    responses: list[list[int]] = [[] for _ in prompts]
    alive = list(range(len(prompts)))  # original row of each row still in the batch
    running = torch.ones(len(prompts), dtype=torch.bool)
    position = (mask.cumsum(-1) - 1 + shared).clamp_(min=0)
    mask = torch.nn.functional.pad(mask, (shared, 0), value=1)
    cache = build_cache(model, capacity_tokens=mask.shape[1] + sampling.max_new_tokens)
    cache_name = cache_argument(model)
    if shared:
        first = torch.tensor([prompts[0][:shared]])
        model.base_model(input_ids=first, use_cache=True, **{cache_name: cache})
        cache.batch_repeat_interleave(len(prompts))
    head = model.get_output_embeddings()
    states: torch.Tensor | None = None
    for step in range(sampling.max_new_tokens):
        output = model.base_model(
            input_ids=token_ids,
            attention_mask=mask,
            position_ids=position,
            use_cache=True,
            **{cache_name: cache},
        )
        hiddens = output.last_hidden_state[:, -1]
        if keep_states:
            if states is None:
                states = hiddens.new_zeros(len(prompts), sampling.max_new_tokens, hiddens.shape[-1])
            states[alive, step] = hiddens
        drawn = draw(head(hiddens), temperature=sampling.temperature, generator=generator)
        for index, token in enumerate(drawn.tolist()):
            if running[index]:
                responses[alive[index]].append(token)
        running &= ~torch.isin(drawn, ends)
        if not running.any():
            break
        if running.float().mean() <= 1 - _COMPACT_SHARE:
            keep = running.nonzero().squeeze(1)
            cache.batch_select_indices(keep)
            mask, position, drawn, running = mask[keep], position[keep], drawn[keep], running[keep]
            alive = [alive[index] for index in keep.tolist()]
        token_ids = drawn.unsqueeze(1)
        mask = torch.nn.functional.pad(mask, (0, 1), value=1)
        position = position[:, -1:] + 1
    return responses, states


def draw(logits: torch.Tensor, *, temperature: float, generator: torch.Generator) -> torch.Tensor:
    """Draw one token a row from softmax(logits / temperature). [B, V] to int64 [B]; 0 takes the best."""
    if temperature == 0:
        return logits.argmax(-1)
    # Inverse of the cumulative distribution: one uniform number a row instead of one a token.
    cumulative = torch.softmax(logits.float() / temperature, dim=-1).cumsum_(-1)
    threshold = torch.rand(len(logits), 1, generator=generator) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, threshold, right=True).squeeze(1).clamp_(max=logits.shape[-1] - 1)
