"""Batches of prompt and response, padded right, and the order in which training sees them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from ammd.kv_cache import shared_tokens

# Batches are cut from pools of this many batches sorted by length: little padding, still a random order.
_POOL_BATCHES = 16

TokenPair = tuple[Sequence[int], Sequence[int]]  # prompt ids, response ids


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """B sequences of a prompt and its response, padded right to T tokens."""

    token_ids: torch.Tensor  # int64 [B, T]
    attention_mask: torch.Tensor  # int64 [B, T]  1 on prompt and response
    response_mask: torch.Tensor  # bool [B, T]  True on response tokens, end token included
    shared_tokens: int = 0  # all rows begin with the same so many tokens, none of which predicts a response
    drawn_logprobs: torch.Tensor | None = None  # float32 [N]  of `targets` under what drew them, if known

    @property
    def state_mask(self) -> torch.Tensor:
        """True where the hidden state predicts a response token: one to the left of it. bool [B, T]."""
        return torch.roll(self.response_mask, -1, dims=1)

    @property
    def targets(self) -> torch.Tensor:
        """The response tokens, row after row. int64 [N]."""
        return self.token_ids[self.response_mask]

    @property
    def last_in_row(self) -> torch.Tensor:
        """True at the last response token of each row, in the order of `targets`. bool [N]."""
        lengths = self.response_mask.sum(1)
        last = torch.zeros(int(lengths.sum()), dtype=torch.bool, device=lengths.device)
        last[lengths.cumsum(0) - 1] = True
        return last

    @property
    def sources(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The prompts alone, padded right to S tokens, and 1 on their tokens, for an encoder. int64 [B, S] each."""
        mask = self.attention_mask * ~self.response_mask
        width = int(mask.sum(1).max())
        return (self.token_ids * mask)[:, :width], mask[:, :width]

    def decoder_inputs(self, start_token_id: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what a decoder reads to predict the responses, and where it predicts one of their tokens.

        That is `start_token_id` and the response without its last token, padded right to the longest response of R
        tokens. int64 and bool [B, R].
        """
        lengths = self.response_mask.sum(1)
        places = torch.arange(int(lengths.max()), device=lengths.device)
        mask = places < lengths[:, None]
        inputs = torch.zeros_like(mask, dtype=torch.long)
        inputs[mask] = self.targets
        inputs = inputs.roll(1, dims=1)
        inputs[:, 0] = start_token_id
        return inputs * mask, mask

    def to(self, device: torch.device) -> Batch:
        """Return the batch on `device`."""
        logprobs = self.drawn_logprobs
        return replace(
            self,
            token_ids=self.token_ids.to(device),
            attention_mask=self.attention_mask.to(device),
            response_mask=self.response_mask.to(device),
            drawn_logprobs=None if logprobs is None else logprobs.to(device),
        )

    def rows(self, some: slice) -> tuple[Batch, slice]:
        """Return consecutive rows without padding that all of them have, and their place among the N tokens."""
        if some == slice(0, len(self.token_ids)):
            return self, slice(0, int(self.response_mask.sum()))
        width = int(self.attention_mask[some].sum(1).max())
        mask = self.response_mask[some, :width]
        start = int(self.response_mask[: some.start].sum())
        place = slice(start, start + int(mask.sum()))
        part = Batch(
            token_ids=self.token_ids[some, :width],
            attention_mask=self.attention_mask[some, :width],
            response_mask=mask,
            shared_tokens=self.shared_tokens,
            drawn_logprobs=None if self.drawn_logprobs is None else self.drawn_logprobs[place],
        )
        return part, place

    def pieces(self, rows: int | None) -> Iterator[tuple[Batch, slice]]:
        """Yield pieces of at most `rows` rows as `rows` does; None: all in one."""
        count = len(self.token_ids)
        size = count if rows is None else rows
        for start in range(0, count, size):
            yield self.rows(slice(start, min(start + size, count)))


def build_batch(pairs: Sequence[TokenPair], drawn_logprobs: torch.Tensor | None = None) -> Batch:
    """Pad prompt and response pairs into one batch. Every response has at least one token."""
    width = max(len(prompt) + len(response) for prompt, response in pairs)
    token_ids = torch.zeros(len(pairs), width, dtype=torch.long)
    attention_mask = torch.zeros(len(pairs), width, dtype=torch.long)
    response_mask = torch.zeros(len(pairs), width, dtype=torch.bool)
    for row, (prompt, response) in enumerate(pairs):
        length = len(prompt) + len(response)
        token_ids[row, :length] = torch.tensor([*prompt, *response])
        attention_mask[row, :length] = 1
        response_mask[row, len(prompt) : length] = True
    return Batch(
        token_ids=token_ids,
        attention_mask=attention_mask,
        response_mask=response_mask,
        shared_tokens=shared_tokens([prompt for prompt, _ in pairs]),
        drawn_logprobs=drawn_logprobs,
    )


def endless_order(lengths: Sequence[int], *, batch_size: int, seed: int) -> Iterator[list[int]]:
    """Yield index lists of one batch each, epoch after epoch, every index once an epoch.

    Rows of a batch have like lengths; which rows meet, and the order of batches, is drawn anew each epoch.
    A last short batch of an epoch is left out (its rows come up in the next one) unless it is the only one.
    """
    generator = torch.Generator().manual_seed(seed)
    size = min(batch_size, len(lengths))
    while True:
        shuffled = torch.randperm(len(lengths), generator=generator).tolist()
        batches: list[list[int]] = []
        for start in range(0, len(shuffled), size * _POOL_BATCHES):
            pool = sorted(shuffled[start : start + size * _POOL_BATCHES], key=lambda index: lengths[index])
            batches += [pool[cut : cut + size] for cut in range(0, len(pool) - size + 1, size)]
        for index in torch.randperm(len(batches), generator=generator).tolist():
            yield batches[index]


def cut_batches(order: Iterator[list[int]], size: int) -> Iterator[list[int]]:
    """Yield the rows of `order`, in their order, as batches of `size` rows."""
    waiting: list[int] = []
    for batch in order:
        waiting += batch
        while len(waiting) >= size:
            yield waiting[:size]
            del waiting[:size]
