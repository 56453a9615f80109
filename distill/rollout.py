"""Sample responses from a model: many prompts at once, with a KV cache, reproducibly from a generator.

Prompts are sorted by length and cut into batches, padded on the left. Rows that have ended leave the batch
(their cache rows too), so that a few long answers do not keep paying for the short ones. Logits exist for
the last position only. The same seed gives the same text on one machine and thread count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .kv_cache import build_cache, cache_argument

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
) -> list[list[int]]:
    """Return one response for each prompt, in the order of `prompts`, end token included where drawn.

    Args:
        model: Causal language model in the dtype it should run in.
        prompts: Token ids of each prompt, none empty.
        sampling: Length, temperature, end tokens, rows a batch.
        generator: Source of randomness; not used at temperature 0.
        on_tokens: Called after each batch with prompts finished and tokens drawn so far.
    """
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]), reverse=True)
    responses: list[list[int]] = [[] for _ in prompts]
    tokens = 0
    for start in range(0, len(order), sampling.batch_size):
        rows = order[start : start + sampling.batch_size]
        drawn = _sample_batch(model, [prompts[row] for row in rows], sampling, generator)
        for row, response in zip(rows, drawn, strict=True):
            responses[row] = response
            tokens += len(response)
        on_tokens(start + len(rows), tokens)
    return responses


@torch.inference_mode()
def _sample_batch(
    model: PreTrainedModel, prompts: list[Sequence[int]], sampling: Sampling, generator: torch.Generator
) -> list[list[int]]:
    width = max(len(prompt) for prompt in prompts)
    token_ids = torch.zeros(len(prompts), width, dtype=torch.long)
    mask = torch.zeros(len(prompts), width, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        token_ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    ends = torch.tensor(sampling.end_token_ids)
    responses: list[list[int]] = [[] for _ in prompts]
    alive = list(range(len(prompts)))  # original row of each row still in the batch
    running = torch.ones(len(prompts), dtype=torch.bool)
    position = mask.cumsum(-1) - 1
    position.clamp_(min=0)
    cache = build_cache(model, capacity_tokens=width + sampling.max_new_tokens)
    cache_name = cache_argument(model)
    for _ in range(sampling.max_new_tokens):
        output = model(
            input_ids=token_ids,
            attention_mask=mask,
            position_ids=position,
            use_cache=True,
            logits_to_keep=1,
            **{cache_name: cache},
        )
        drawn = draw(output.logits[:, -1], temperature=sampling.temperature, generator=generator)
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
    return responses


def draw(logits: torch.Tensor, *, temperature: float, generator: torch.Generator) -> torch.Tensor:
    """Draw one token a row from softmax(logits / temperature). [B, V] to int64 [B]; 0 takes the best."""
    if temperature == 0:
        return logits.argmax(-1)
    # Inverse of the cumulative distribution: one uniform number a row instead of one a token.
    cumulative = torch.softmax(logits.float() / temperature, dim=-1).cumsum_(-1)
    threshold = torch.rand(len(logits), 1, generator=generator) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, threshold, right=True).squeeze(1).clamp_(max=logits.shape[-1] - 1)
