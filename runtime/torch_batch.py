"""Batched work on a torch checkpoint: draw responses for many prompts, and score given responses.

While scoring, logits exist for one row's response at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

_BATCH_ROWS = 128


def greedy_and_sampled_responses(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    sampled_prompts: int,
    max_new_tokens: int,
    end_token_ids: frozenset[int],
    generator: torch.Generator,
) -> tuple[list[list[int]], list[list[int]]]:
    """Return the likeliest response to each prompt, and one drawn at temperature 1 to each of the first.

    Both go through the network together: twice the rows take less than twice the time.
    """
    import torch

    from ammd.batch_decoding import decode_batch, draw

    asked = [*prompts, *prompts[:sampled_prompts]]
    order = sorted(range(len(asked)), key=lambda index: len(asked[index]))
    responses: list[list[int]] = [[] for _ in asked]
    for start in range(0, len(order), _BATCH_ROWS):
        batch = order[start : start + _BATCH_ROWS]
        is_drawn = torch.tensor(batch) >= len(prompts)

        def choose(logits: Tensor, rows: Tensor, is_drawn: Tensor = is_drawn) -> Tensor:
            drawn = is_drawn[rows]
            chosen = logits.argmax(-1)
            uniform = torch.rand(int(drawn.sum()), generator=generator)
            chosen[drawn] = draw(logits[drawn], temperature=1.0, uniform=uniform)
            return chosen

        found, _ = decode_batch(
            model,
            [asked[index] for index in batch],
            max_new_tokens=max_new_tokens,
            end_token_ids=end_token_ids,
            choose=choose,
        )
        for index, response in zip(batch, found, strict=True):
            responses[index] = response
    return responses[: len(prompts)], responses[len(prompts) :]


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

    from ammd.kv_cache import has_plain_cache, run_shared, shared_tokens

    can_share = has_plain_cache(model)
    order = sorted(pairs, key=lambda pair: len(pair[0]) + len(pair[1]))
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    nats: list[float] = []
    with torch.inference_mode():
        for start in range(0, len(order), _BATCH_ROWS):
            batch = order[start : start + _BATCH_ROWS]
            shared = shared_tokens([prompt for prompt, _ in batch]) if can_share and len(batch) > 1 else 0
            width = max(len(prompt) + len(response) for prompt, response in batch)
            # Padding stands on the right, where a causal model cannot see it from a token that counts.
            rows = [[*prompt, *response] for prompt, response in batch]
            token_ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
            past = run_shared(model, token_ids[:1, :shared], rows=len(batch)) if shared else {}
            hidden = decoder(
                input_ids=token_ids[:, shared:], use_cache=bool(shared), **past
            ).last_hidden_state
            for row, (prompt, response) in enumerate(batch):
                first = len(prompt) - 1 - shared  # the position that predicts the first response token
                logits = head(hidden[row, first : first + len(response)])
                chosen = torch.tensor(response)[:, None]
                nats += (-logits.float().log_softmax(-1).gather(1, chosen)[:, 0]).tolist()
    return nats
