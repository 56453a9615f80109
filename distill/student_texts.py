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
from .fleet import Fleet
from .rollout import Sampling, sample_mixed, sample_responses
from .snapshots import State

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .policy import Policy


_Drawn = list[tuple[TokenPair, torch.Tensor | None]]  # texts of a batch, with how likely a mixture found them


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
        fleet: Fleet,
        guide: PreTrainedModel | None = None,
        guide_share: float = 0.0,
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
        self._fleet = fleet
        self._guide, self._guide_share = guide, guide_share
        self._rounds = 0
        self._waiting: deque[_Drawn] = deque()
        self.generated_tokens = 0  # by all processes, since this was made

    def next_batch(self, student: Policy) -> Batch:
        """Return the next batch, sampling a new round from `student` when the last is used up."""
        if not self._waiting:
            self._waiting.extend(self._sample_round(student))
        return _build(self._waiting.popleft())

    def state(self) -> State:
        """Return how far it is, and the texts that wait."""
        waiting = [
            [(pair, None if kept is None else kept.tolist()) for pair, kept in drawn]
            for drawn in self._waiting
        ]
        return State(
            tensors={"generator": self._generator.get_state()},
            facts={"rounds": self._rounds, "waiting": waiting},
        )

    def restore(self, state: State) -> None:
        """Take over what `state` returned, in texts that have just been made."""
        self._generator.set_state(state.tensors["generator"])
        for _ in range(state.facts["rounds"] * self._reuse_steps):
            next(self._order)
        self._rounds = state.facts["rounds"]
        self._waiting.extend(
            [((prompt, ids), None if kept is None else torch.tensor(kept)) for (prompt, ids), kept in drawn]
            for drawn in state.facts["waiting"]
        )

    def sample(self, student: Policy) -> list[TokenPair]:
        """Return a new round of `batch_size * reuse_steps` texts, in no order."""
        prompts, numbers, sampler = self._begin_round(student)
        part = self._fleet.share(len(prompts))
        responses = sample_responses(
            sampler, prompts[part], sampling=self._sampling, randomness=numbers[part]
        )
        whole = self._fleet.joined(responses)
        self.generated_tokens += sum(map(len, whole))
        return list(zip(prompts, whole, strict=True))

    def _sample_round(self, student: Policy) -> list[_Drawn]:
        drawn: _Drawn
        if self._guide is None:
            drawn = [(pair, None) for pair in self.sample(student)]
        else:
            prompts, numbers, sampler = self._begin_round(student)
            part = self._fleet.share(len(prompts))
            mixed = sample_mixed(
                sampler,
                self._guide,
                prompts[part],
                sampling=self._sampling,
                guide_share=self._guide_share,
                randomness=numbers[part],
            )
            whole = self._fleet.joined(mixed)
            self.generated_tokens += sum(len(ids) for ids, _ in whole)
            drawn = [((prompt, ids), kept) for prompt, (ids, kept) in zip(prompts, whole, strict=True)]
        # Rows of like length meet; the order of the batches does not follow length.
        drawn.sort(key=lambda one: len(one[0][0]) + len(one[0][1]))
        batches = [
            drawn[start : start + self._batch_size] for start in range(0, len(drawn), self._batch_size)
        ]
        order = torch.randperm(len(batches), generator=self._generator).tolist()
        return [batches[index] for index in order]

    def _begin_round(self, student: Policy) -> tuple[list[Sequence[int]], torch.Tensor, PreTrainedModel]:
        """Return the round's prompts, the random numbers for their responses, and the student to sample from."""
        self._rounds += 1
        rows = [index for _ in range(self._reuse_steps) for index in next(self._order)]
        numbers = torch.rand(len(rows), self._sampling.max_new_tokens, generator=self._generator)
        return [self._prompts[row] for row in rows], numbers, student.copy_in_dtype(self._dtype).eval()


def _build(drawn: _Drawn) -> Batch:
    logprobs = [kept for _, kept in drawn if kept is not None]
    return build_batch([pair for pair, _ in drawn], torch.cat(logprobs) if logprobs else None)
