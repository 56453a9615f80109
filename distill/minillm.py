"""MiniLLM's policy gradient of the sequence-level reverse KL (Gu 2023, arXiv 2306.08543, section 2.2).

On texts drawn from a mixture of student and teacher, each token's ratio  w = Q(token) / mixture(token)  stands for the
exact importance weight, which is a product over all tokens before it and varies too much. A step descends

    sum_t  w_t KL(Q || P)(s_t)  +  max(w_t A_t, clip(w_t) A_t)

where A_t is the mean of  log Q - log P  over the tokens that follow, held fixed. The first term is exact over the
vocabulary. The mean in place of the sum is the paper's length normalisation; its loss on pre-training text is not part
of this: there is none here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .score import Block, Carry, Credit


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceScore:
    """The estimator on texts that the mixture drew. Implements `Estimator`."""

    ratio_clip: float
    length_normalised: bool = True

    @property
    def is_exact(self) -> bool:
        """See `Estimator`."""
        return True

    def actions(self, _student_logprobs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """See `Estimator`."""
        return targets

    def add(self, block: Block, carry: Carry) -> tuple[Credit, Carry]:
        """See `Estimator`: weighs the exact terms, then adds the gradient for what follows."""
        assert block.drawn_logprobs is not None
        grad, taken = block.terms.grad_logits, block.taken[:, None]
        own = block.student_logprobs.gather(1, taken).squeeze(1)
        costs = own - block.teacher_logprobs.gather(1, taken).squeeze(1)
        futures, carry = self._futures(costs, block.last_in_row, carry)
        ratio = (own - block.drawn_logprobs).exp()
        grad.mul_(ratio[:, None])
        plain = ratio * futures
        surrogate = torch.maximum(plain, ratio.clamp(1 - self.ratio_clip, 1 + self.ratio_clip) * futures)
        # Where the clipped value is the larger one nothing depends on the student any more.
        slope = plain.masked_fill(surrogate > plain, 0)
        grad.sub_(block.student_logprobs.exp_().mul_(slope[:, None]))
        grad.scatter_add_(1, taken, slope[:, None])
        # The caller counts the terms' own loss; the ratio and what follows come on top.
        loss = float((block.terms.loss * (ratio - 1)).sum() + surrogate.sum())
        return Credit(loss=loss, future=float(futures.sum())), carry

    def _futures(
        self, costs: torch.Tensor, last_in_row: torch.Tensor, carry: Carry
    ) -> tuple[torch.Tensor, Carry]:
        """Return the mean, or the sum, of the costs that follow each token in its response."""
        futures = []
        total, count = carry
        for cost, is_last in zip(reversed(costs.tolist()), reversed(last_in_row.tolist()), strict=True):
            if is_last:
                total, count = 0.0, 0
            futures.append(total / max(1, count) if self.length_normalised else total)
            total, count = total + cost, count + 1
        return costs.new_tensor(futures[::-1]), (total, count)
