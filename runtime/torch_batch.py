"""Batched work on a torch checkpoint: draw responses for many prompts, and score given responses.

Prompts are padded on the left, so that the last column is every row's next token. Only the last position's
logits exist while drawing; while scoring, logits exist for one row's response at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from .torch_engine import cache_name

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

_BATCH_PROMPTS = 64

_Result = TypeVar("_Result")


def decode_batch(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    end_token_ids: frozenset[int],
    choose: Callable[[Tensor], Tensor],
) -> list[list[int]]:
    """Return a response for each prompt, end token included where one was drawn.

    Args:
        model: Causal language model.
        prompts: Token ids, none empty; all run at once.
        max_new_tokens: Longest response.
        end_token_ids: Tokens after which a row is finished.
        choose: Takes float32 logits [B, V] of a step, finished rows included, and gives int64 [B].
    """
    import torch

    width = max(map(len, prompts))
    token_ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    responses: list[list[int]] = [[] for _ in prompts]
    running = [True] * len(prompts)
    name = cache_name(model)
    cache = None
    with torch.inference_mode():
        for _ in range(max_new_tokens):
            output = model(
                input_ids=token_ids,
                attention_mask=mask,
                position_ids=positions,
                use_cache=True,
                logits_to_keep=1,
                **{name: cache},
            )
            cache = output[name]
            chosen = choose(output.logits[:, -1].float())
            for row, token in enumerate(chosen.tolist()):
                if running[row]:
                    responses[row].append(token)
                    running[row] = token not in end_token_ids
            if not any(running):
                break
            token_ids = chosen[:, None]
            mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=1)
            positions = positions[:, -1:] + 1
    return responses


def greedy_responses(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    end_token_ids: frozenset[int],
) -> list[list[int]]:
    """Return the likeliest response, token by token, for each prompt."""
    return _in_batches(
        prompts,
        lambda batch: decode_batch(
            model,
            batch,
            max_new_tokens=max_new_tokens,
            end_token_ids=end_token_ids,
            choose=lambda logits: logits.argmax(-1),
        ),
    )


def greedy_and_sampled_responses(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    end_token_ids: frozenset[int],
    generator: torch.Generator,
) -> tuple[list[list[int]], list[list[int]]]:
    """Return for each prompt the likeliest response and one drawn from the model at temperature 1.

    Both go through the network together: twice the rows take less than twice the time.
    """
    import torch

    def run(batch: list[Sequence[int]]) -> list[tuple[list[int], list[int]]]:
        count = len(batch)
        found = decode_batch(
            model,
            batch * 2,
            max_new_tokens=max_new_tokens,
            end_token_ids=end_token_ids,
            choose=lambda logits: torch.cat(
                [logits[:count].argmax(-1), _draw(logits[count:], generator=generator)]
            ),
        )
        return list(zip(found[:count], found[count:], strict=True))

    pairs = _in_batches(prompts, run)
    return [greedy for greedy, _ in pairs], [sampled for _, sampled in pairs]


def _draw(logits: Tensor, *, generator: torch.Generator) -> Tensor:
    """Draw one token a row at temperature 1. float32 [B, V] to int64 [B]."""
    import torch

    # One number a row against the running sum: torch.multinomial draws one for each of V tokens.
    reached = logits.softmax(-1).cumsum(-1, dtype=torch.float64)
    drawn = torch.rand(len(logits), 1, dtype=torch.float64, generator=generator) * reached[:, -1:]
    chosen = torch.searchsorted(reached, drawn, right=True)[:, 0]
    return chosen.clamp(max=logits.shape[1] - 1)  # rounding can reach the very end


def response_nats(
    model: PreTrainedModel, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> list[float]:
    """Return -log p in nats of every response token, given its prompt and the tokens before it.

    Args:
        model: Causal language model whose logits are hidden states times unembedding.
        pairs: Prompt and response of each sequence, neither empty.

    Returns:
        One number a response token, in no particular order.
    """
    import torch

    order = sorted(pairs, key=lambda pair: len(pair[0]) + len(pair[1]))
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    nats: list[float] = []
    with torch.inference_mode():
        for start in range(0, len(order), _BATCH_PROMPTS):
            batch = order[start : start + _BATCH_PROMPTS]
            width = max(len(prompt) + len(response) for prompt, response in batch)
            # Padding stands on the right, where a causal model cannot see it from a token that counts.
            rows = [[*prompt, *response] for prompt, response in batch]
            token_ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
            hidden = decoder(input_ids=token_ids, use_cache=False).last_hidden_state
            for row, (prompt, response) in enumerate(batch):
                first = len(prompt) - 1  # the position that predicts the first response token
                logits = head(hidden[row, first : first + len(response)])
                chosen = torch.tensor(response)[:, None]
                nats += (-logits.float().log_softmax(-1).gather(1, chosen)[:, 0]).tolist()
    return nats


def _in_batches(
    prompts: Sequence[Sequence[int]], run: Callable[[list[Sequence[int]]], list[_Result]]
) -> list[_Result]:
    """Run prompts of similar length together and return the results in the order given."""
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    results: dict[int, _Result] = {}
    for start in range(0, len(order), _BATCH_PROMPTS):
        rows = order[start : start + _BATCH_PROMPTS]
        results |= zip(rows, run([prompts[row] for row in rows]), strict=True)
    return [results[row] for row in range(len(prompts))]
