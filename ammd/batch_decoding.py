"""Decode many prompts at once: the loop under the teacher's texts, the student's rollouts and the evaluation.

Rows that have ended leave the batch (their cache rows too), so that a few long responses do not keep paying for the
short ones. Logits exist for the last position only. How prompts and tokens are read is `token_readers`' business.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from .token_readers import begin_reading

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Rows are dropped in one go when this share of the batch has ended: compacting copies the cache.
_COMPACT_SHARE = 0.25
# Float32 bytes of the probabilities that exist at once: those of a whole batch are tens of megabytes, which no cache
# holds.
_DRAW_BYTES = 3 << 20

Choose = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Takes the logits [B, V] of the rows still there, in the model's dtype, and the place of each row's prompt, int64 [B]
on the CPU; gives the next token of each, int64 [B]. With a guide, logits are [2, B, V]: the model's and the guide's."""


@torch.inference_mode()
def decode_batch(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    end_token_ids: Collection[int],
    choose: Choose,
    keep_states: bool = False,
    guide: PreTrainedModel | None = None,
) -> tuple[list[list[int]], torch.Tensor | None]:
    """Return a response for each prompt, and the states it was chosen from where they are asked for.

    Args:
        model: Language model, causal or encoder-decoder, whose logits are hidden states times unembedding.
        prompts: Token ids, none empty; all run at once.
        max_new_tokens: Longest response.
        end_token_ids: Tokens after which a row is finished; a response includes the one that ended it.
        choose: Chooses the next token of every row. A row that has just ended may stay for some steps more.
        keep_states: Keep the final hidden state behind each token of the responses. [B, longest, H].
        guide: A second model over the same vocabulary that reads along, for a choice that looks at both.
    """
    models = [model] if guide is None else [model, guide]
    readers = [begin_reading(one, prompts, max_new_tokens=max_new_tokens) for one in models]
    responses: list[list[int]] = [[] for _ in prompts]
    # Which rows there are is known to the CPU, wherever the model runs.
    ends = torch.tensor(sorted(end_token_ids), dtype=torch.long)
    alive = torch.arange(len(prompts))  # place of each row still in the batch
    running = torch.ones(len(prompts), dtype=torch.bool)
    states: torch.Tensor | None = None
    for step in range(max_new_tokens):
        read = [reader.read() for reader in readers]
        hiddens = read[0]
        if keep_states:
            if states is None:
                states = hiddens.new_zeros(len(prompts), max_new_tokens, hiddens.shape[-1])
            states[alive, step] = hiddens
        logits = [one.get_output_embeddings()(state) for one, state in zip(models, read, strict=True)]
        chosen = choose(logits[0] if guide is None else torch.stack(logits), alive)
        tokens = chosen.cpu()
        for place, token, counts in zip(alive.tolist(), tokens.tolist(), running.tolist(), strict=True):
            if counts:
                responses[place].append(token)
        running &= ~torch.isin(tokens, ends)
        if not running.any():
            break
        if running.float().mean() <= 1 - _COMPACT_SHARE:
            keep = running.nonzero().squeeze(1)
            alive, running, keep = alive[keep], running[keep], keep.to(chosen.device)
            chosen = chosen[keep]
            for reader in readers:
                reader.keep(keep)
        for reader in readers:
            reader.append(chosen)
    return responses, states


def draw(logits: torch.Tensor, *, temperature: float, uniform: torch.Tensor) -> torch.Tensor:
    """Draw one token a row from softmax(logits / temperature); 0 takes the best.

    Args:
        logits: [B, V].
        temperature: 0 or more.
        uniform: A random number from 0 to below 1 for each row, float32 [B]; not used at temperature 0.

    Returns:
        int64 [B].
    """
    if temperature == 0:
        return logits.argmax(-1)
    # Inverse of the cumulative distribution: one uniform number a row instead of one a token.
    drawn = torch.empty(len(logits), dtype=torch.long, device=logits.device)
    uniform = uniform.to(logits.device)
    for rows in _draw_rows(logits):
        cumulative = torch.softmax(logits[rows].float() / temperature, dim=-1).cumsum_(-1)
        reached = uniform[rows, None] * cumulative[:, -1:]
        drawn[rows] = torch.searchsorted(cumulative, reached, right=True).squeeze(1)
    return drawn.clamp_(max=logits.shape[-1] - 1)


def draw_mixed(
    logits: torch.Tensor, *, guide_share: float, uniform: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw one token a row from  (1 - guide_share) softmax(model) + guide_share softmax(guide).

    Args:
        logits: The model's and the guide's. [2, B, V].
        guide_share: From 0 to below 1.
        uniform: A random number from 0 to below 1 for each row, float32 [B].

    Returns:
        Tokens int64 [B] and their log-probabilities under the mixture, float32 [B].
    """
    log_share = math.log(guide_share) if guide_share else -math.inf
    rows, device = logits.shape[1], logits.device
    drawn = torch.empty(rows, dtype=torch.long, device=device)
    logprobs = torch.empty(rows, device=device)
    for part in _draw_rows(logits[0]):
        model, guide = (one[part].float().log_softmax(-1) for one in logits)
        mixture = torch.logaddexp(model + math.log1p(-guide_share), guide + log_share)
        drawn[part] = draw(mixture, temperature=1.0, uniform=uniform[part])
        logprobs[part] = mixture.gather(1, drawn[part][:, None]).squeeze(1)
    return drawn, logprobs


def _draw_rows(logits: torch.Tensor) -> Iterator[slice]:
    """Yield the rows whose probabilities exist at once: on a GPU all."""
    rows, vocabulary = logits.shape
    size = max(1, _DRAW_BYTES // (4 * vocabulary)) if logits.is_cpu else rows
    for start in range(0, rows, size):
        yield slice(start, start + size)
