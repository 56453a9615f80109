"""Batched work on a torch checkpoint: draw responses for many prompts, and score given responses.

While scoring, logits exist for one row's response at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from .likelihood import token_logprobs

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

    Pairs = Sequence[tuple[Sequence[int], Sequence[int]]]  # token ids of prompt and response

_BATCH_ROWS = 128


def greedy_and_sampled_responses(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    sampled_prompts: int,
    max_new_tokens: int,
    end_token_ids: frozenset[int],
    generator: torch.Generator,
    keep_states: int = 0,
) -> tuple[list[list[int]], list[list[int]], list[Tensor]]:
    """Return the likeliest response to each prompt, and one drawn at temperature 1 to each of the first.

    Both go through the network together: twice the rows take less than twice the time. Also return the final hidden
    states [T, H] that predicted the tokens of the first `keep_states` likeliest responses.
    """
    import torch

    from ammd.batch_decoding import decode_batch, draw

    asked = [*prompts, *prompts[:sampled_prompts]]
    order = sorted(range(len(asked)), key=lambda index: len(asked[index]))
    responses: list[list[int]] = [[] for _ in asked]
    kept: dict[int, Tensor] = {}
    for start in range(0, len(order), _BATCH_ROWS):
        batch = order[start : start + _BATCH_ROWS]
        is_drawn = torch.tensor(batch) >= len(prompts)

        def choose(logits: Tensor, rows: Tensor, is_drawn: Tensor = is_drawn) -> Tensor:
            drawn = is_drawn[rows]
            chosen = logits.argmax(-1)
            uniform = torch.rand(int(drawn.sum()), generator=generator)
            chosen[drawn] = draw(logits[drawn], temperature=1.0, uniform=uniform)
            return chosen

        found, states = decode_batch(
            model,
            [asked[index] for index in batch],
            max_new_tokens=max_new_tokens,
            end_token_ids=end_token_ids,
            choose=choose,
            keep_states=keep_states > 0,
        )
        for row, (index, response) in enumerate(zip(batch, found, strict=True)):
            responses[index] = response
            if states is not None and index < min(keep_states, len(prompts)):
                kept[index] = states[row, : len(response)].clone()
    return responses[: len(prompts)], responses[len(prompts) :], [kept[index] for index in sorted(kept)]


def response_states(model: PreTrainedModel, pairs: Pairs) -> Iterator[tuple[int, Tensor]]:
    """Give, for each pair, its place and the final hidden states that predict its response's tokens.

    Pairs come in the order of their lengths.

    Args:
        model: Language model whose logits are hidden states times unembedding.
        pairs: Prompt and response of each sequence, neither empty.

    Returns:
        States [T, H] of the response's T tokens, in the model's dtype; a view on those of many pairs.
    """
    from ammd.encoder_decoder import is_encoder_decoder

    order = sorted(range(len(pairs)), key=lambda place: sum(map(len, pairs[place])))
    for start in range(0, len(order), _BATCH_ROWS):
        places = order[start : start + _BATCH_ROWS]
        batch = [pairs[place] for place in places]
        found = _target_states(model, batch) if is_encoder_decoder(model) else _sequence_states(model, batch)
        yield from zip(places, found, strict=True)


def response_logprobs(model: PreTrainedModel, pairs: Pairs) -> list[float]:
    """Return log p in nats of each pair's response, summed in float64; 0 of an empty one.

    What precedes the last token is read once for all pairs that share it: the prompt, of responses of one token.

    Raises:
        EngineError: Logits are no numbers.
    """
    import torch

    readings: dict[tuple[tuple[int, ...], tuple[int, ...]], list[int]] = {}
    for place, (prompt, response) in enumerate(pairs):
        if response:
            readings.setdefault((tuple(prompt), tuple(response[:-1])), []).append(place)
    found = [0.0] * len(pairs)
    groups = list(readings.values())
    head = model.get_output_embeddings()
    for reading, states in response_states(model, [pairs[places[0]] for places in groups]):
        with torch.inference_mode():
            logits = head(states).float().numpy()
        for place in groups[reading]:
            logprobs, _ = token_logprobs(logits, pairs[place][1])
            found[place] = math.fsum(logprobs)
    return found


def _sequence_states(model: PreTrainedModel, batch: Pairs) -> Iterator[Tensor]:
    """Yield the states of each pair, which a decoder-only model reads as one sequence."""
    import torch

    from ammd.kv_cache import has_plain_cache, run_shared, shared_tokens

    can_share = has_plain_cache(model) and len(batch) > 1
    shared = shared_tokens([prompt for prompt, _ in batch]) if can_share else 0
    # Padding stands on the right, where a causal model cannot see it from a token that counts.
    token_ids, _ = _padded([[*prompt, *response] for prompt, response in batch])
    with torch.inference_mode():
        past = run_shared(model, token_ids[:1, :shared], rows=len(batch)) if shared else {}
        hidden = (
            model.get_decoder()(input_ids=token_ids[:, shared:], use_cache=bool(shared), **past)
        ).last_hidden_state
    for row, (prompt, response) in enumerate(batch):
        first = len(prompt) - 1 - shared  # the position that predicts the first response token
        yield hidden[row, first : first + len(response)]


def _target_states(model: PreTrainedModel, batch: Pairs) -> Iterator[Tensor]:
    """Yield the states of each pair, which an encoder-decoder reads as source and target."""
    import torch

    from ammd.encoder_decoder import start_token_id, target_states

    source_ids, source_mask = _padded([prompt for prompt, _ in batch])
    start = start_token_id(model)
    target_ids, _ = _padded([[start, *response[:-1]] for _, response in batch])
    with torch.inference_mode():
        hidden = target_states(model, source_ids=source_ids, source_mask=source_mask, target_ids=target_ids)
    for row, (_, response) in enumerate(batch):
        yield hidden[row, : len(response)]


def _padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Return ids [B, T], padded on the right, and a mask that is 1 on those of the rows."""
    import torch

    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return ids, mask


def nats_of(model: PreTrainedModel, states: Tensor, response: Sequence[int]) -> list[float]:
    """Return -log p in nats of each of the response's tokens, from the states [T, H] that predict them."""
    import torch

    with torch.inference_mode():
        logits = model.get_output_embeddings()(states).float()
        chosen = torch.tensor(list(response))[:, None]
        nats: list[float] = (logits.logsumexp(-1) - logits.gather(1, chosen)[:, 0]).tolist()
    return nats
