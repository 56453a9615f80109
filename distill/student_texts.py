"""The student's own texts: sampled in rounds from the current student, handed out batch by batch.

A round is one large rollout that lasts for several steps, since sampling many rows at once is much cheaper a token
than sampling few. The texts of a round's last batch are therefore up to `reuse_steps - 1` updates old; with
`reuse_steps = 1` every batch is exactly on-policy. Sampling runs on a copy in the training's matrix dtype.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from .batches import Batch, TokenPair, build_batch, endless_order
from .checkpoint import copy_in_dtype
from .rollout import Sampling, sample_responses

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class StudentTexts:
    """An endless supply of on-policy batches."""

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        sampling: Sampling,
        batch_size: int,
        reuse_steps: int,
        dtype: torch.dtype,
        seed: int,
    ) -> None:
        self._prompts = prompts
        self._sampling = sampling
        self._batch_size = batch_size
        self._reuse_steps = reuse_steps
        self._dtype = dtype
        self._order: Iterator[list[int]] = endless_order(
            [len(prompt) for prompt in prompts], batch_size=batch_size, seed=seed
        )
        self._generator = torch.Generator().manual_seed(seed)
        self._waiting: deque[Batch] = deque()

    def next_batch(self, student: PreTrainedModel) -> Batch:
        """Return the next batch, sampling a new round from `student` when the last is used up."""
        if not self._waiting:
            self._waiting.extend(self._sample_round(student))
        return self._waiting.popleft()

    def _sample_round(self, student: PreTrainedModel) -> list[Batch]:
        rows = [index for _ in range(self._reuse_steps) for index in next(self._order)]
        prompts = [self._prompts[row] for row in rows]
        sampler = copy_in_dtype(student, self._dtype).eval()
        responses = sample_responses(sampler, prompts, sampling=self._sampling, generator=self._generator)
        pairs: list[TokenPair] = list(zip(prompts, responses, strict=True))
        # Rows of like length meet; the order of the batches does not follow length.
        pairs.sort(key=lambda pair: len(pair[0]) + len(pair[1]))
        batches = [
            pairs[start : start + self._batch_size] for start in range(0, len(pairs), self._batch_size)
        ]
        order = torch.randperm(len(batches), generator=self._generator).tolist()
        return [build_batch(batches[index]) for index in order]
