"""The score-function part of the game's gradient: what a token answers for beyond the exact gap at its own state.

    full        the exact gap at each state, and the discounted gaps that follow a token on the student's own texts
    immediate   the exact gap alone
    sampled     both from single actions, as where only the teacher's judgement of samples is at hand

All three have the same expectation where the discount is 0; `sampled` is there to compare and to test with.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from .objective import StateTerms, Weights, future_gaps


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """C consecutive response tokens with both policies. Log-probabilities are float32 [C, V]."""

    terms: StateTerms  # whose gradient is added to
    teacher_logprobs: torch.Tensor
    student_logprobs: torch.Tensor  # is overwritten
    taken: torch.Tensor  # int64 [C]  tokens whose log-probabilities are raised or lowered
    drawn_logprobs: torch.Tensor | None  # float32 [C]  of the texts' tokens under what drew them, where known
    last_in_row: torch.Tensor  # bool [C]  True at the last token of a response
    weights: Weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Credit:
    """Sums over a block's tokens."""

    loss: float = 0.0
    future: float = 0.0  # gaps that follow
    answered: float = 0.0  # all that the tokens answer for, before the baseline


Carry = tuple[float, int]
"""What a block's tokens take over from those behind it: a sum and, where it counts, of how many."""


class Estimator(Protocol):
    """Adds the score-function part of a gradient, block by block from the last token to the first."""

    @property
    def is_exact(self) -> bool:
        """Whether each state's own gap is an expectation over the vocabulary."""
        ...

    def actions(self, student_logprobs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the token that stands for the student's choice at each state. int64 [C]."""
        ...

    def add(self, block: Block, carry: Carry) -> tuple[Credit, Carry]:
        """Add to the block's gradient; return its sums and what the block before it takes over."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How the gradient of the game is estimated on one kind of texts. Implements `Estimator`."""

    estimator: Literal["immediate", "full", "sampled"] = "full"
    own_texts: bool = True  # the texts are the student's, so that its tokens decide on the states that follow
    discount: float = 0.0  # of the gaps that follow a token; 0 leaves them out
    baseline: float = 0.0  # taken off what a token answers for; must not depend on this batch's tokens
    temperature: float = 1.0  # at which the student's texts were sampled: the policy that took the tokens
    generator: torch.Generator | None = None  # draws the student's tokens on the teacher's texts, if sampled

    @property
    def is_exact(self) -> bool:
        """See `Estimator`."""
        return self.estimator != "sampled"

    def actions(self, student_logprobs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """See `Estimator`."""
        if self.is_exact or self.own_texts:
            return targets
        return torch.multinomial(student_logprobs.exp(), 1, generator=self.generator).squeeze(1)

    def add(self, block: Block, carry: Carry) -> tuple[Credit, Carry]:
        """See `Estimator`."""
        terms, last_in_row = block.terms, block.last_in_row
        gaps = terms.gap if terms.taken_gap is None else terms.taken_gap
        answered = torch.zeros_like(gaps) if self.is_exact else gaps
        has_future = self.own_texts and self.discount > 0
        future = 0.0
        if has_future:
            futures = future_gaps(gaps, last_in_row, discount=self.discount, carry=carry[0])
            carry = float(gaps[0] + futures[0]), 0
            future = float(futures.sum())
            answered = answered + futures
        if self.is_exact and (self.estimator == "immediate" or not has_future):
            return Credit(future=future), carry
        advantage = (answered - self.baseline).mul_(block.weights.game)
        if self.is_exact:
            advantage.masked_fill_(last_in_row, 0)  # nothing follows: a baseline would only be noise
        # Descend  log Q'(taken) * advantage  with Q' = softmax(logits / temperature), which drew the
        # texts: its gradient by the logits is  advantage (onehot - Q') / temperature.
        drew, taken = block.student_logprobs, block.taken[:, None]
        if self.temperature != 1:
            drew = drew.div_(self.temperature).log_softmax(-1)
        loss = float((drew.gather(1, taken).squeeze(1) * advantage).sum())
        advantage.div_(self.temperature)
        terms.grad_logits.sub_(drew.exp_().mul_(advantage[:, None]))
        terms.grad_logits.scatter_add_(1, taken, advantage[:, None])
        return Credit(loss=loss, future=future, answered=float(answered.sum())), carry
