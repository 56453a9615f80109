"""Distances between two next-token distributions, as the methods that AMMD is compared with descend them.

P is the teacher's distribution, Q the student's. Each class is one distance D with its parameters; calling it with
log-probabilities [C, V] gives D at every state and `Q * dD/dQ`, from which the gradient by the student's logits
follows: `Q * dD/dQ - Q * sum_a (Q * dD/dQ)(a)`. A term of dD/dQ that is the same for all tokens drops out there
and is left out here. Mixtures are formed in log space, so that a token which one side rules out costs no accuracy.

Sources: GKD (arXiv 2306.13649) for the generalised Jensen-Shannon divergence, DistiLLM (arXiv 2402.03898) for the
skewed ones, f-distill (arXiv 2307.15190) for total variation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch


class Divergence(Protocol):
    """A distance and its slope."""

    def __call__(
        self, teacher_logprobs: torch.Tensor, student_logprobs: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return D [C] and Q * dD/dQ [C, V] from log-probabilities [C, V]."""
        ...


@dataclass(frozen=True, slots=True)
class ReverseKL:
    """KL(Q || P): the student is punished for what the teacher would not say."""

    def __call__(
        self, teacher_logprobs: torch.Tensor, student_logprobs: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Divergence`."""
        slope = (student_logprobs - teacher_logprobs).mul_(student_logprobs.exp())
        return slope.sum(-1).clamp_(min=0), slope


@dataclass(frozen=True, slots=True)
class TotalVariation:
    """Half the L1 distance."""

    def __call__(
        self, teacher_logprobs: torch.Tensor, student_logprobs: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Divergence`."""
        student_probs = student_logprobs.exp()
        excess = student_probs - teacher_logprobs.exp()
        return excess.abs().sum(-1).mul_(0.5), excess.sign_().mul_(student_probs).mul_(0.5)


@dataclass(frozen=True, slots=True)
class GeneralisedJSD:
    """beta KL(P || M) + (1 - beta) KL(Q || M) with M = beta P + (1 - beta) Q.

    It goes to 0 at both ends: over beta it tends to the forward KL as beta falls, over 1 - beta to the reverse.
    """

    beta: float  # strictly between 0 and 1

    def __call__(
        self, teacher_logprobs: torch.Tensor, student_logprobs: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Divergence`."""
        mixture = _log_mixture(teacher_logprobs, student_logprobs, teacher_share=self.beta)
        slope = (student_logprobs - mixture).mul_(student_logprobs.exp()).mul_(1 - self.beta)
        teacher_side = (teacher_logprobs - mixture).mul_(teacher_logprobs.exp()).sum(-1)
        return (self.beta * teacher_side + slope.sum(-1)).clamp_(min=0), slope


@dataclass(frozen=True, slots=True)
class SkewKL:
    """KL(P || alpha P + (1 - alpha) Q), at most -log alpha."""

    alpha: float  # strictly between 0 and 1

    def __call__(
        self, teacher_logprobs: torch.Tensor, student_logprobs: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Divergence`."""
        mixture = _log_mixture(teacher_logprobs, student_logprobs, teacher_share=self.alpha)
        gain = teacher_logprobs - mixture
        value = (gain * teacher_logprobs.exp()).sum(-1).clamp_(min=0)
        return value, gain.add_(student_logprobs).exp_().mul_(self.alpha - 1)


@dataclass(frozen=True, slots=True)
class SkewReverseKL:
    """KL(Q || (1 - alpha) P + alpha Q), at most -log alpha."""

    alpha: float  # strictly between 0 and 1

    def __call__(
        self, teacher_logprobs: torch.Tensor, student_logprobs: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Divergence`."""
        mixture = _log_mixture(teacher_logprobs, student_logprobs, teacher_share=1 - self.alpha)
        gain = student_logprobs - mixture
        value = (gain * student_logprobs.exp()).sum(-1).clamp_(min=0)
        # dD/dQ = log(Q/M) + 1 - alpha Q/M; the 1 drops out.
        slope = (gain - self.alpha * gain.exp()).mul_(student_logprobs.exp())
        return value, slope


def _log_mixture(
    teacher_logprobs: torch.Tensor, student_logprobs: torch.Tensor, *, teacher_share: float
) -> torch.Tensor:
    """Return log(share P + (1 - share) Q). [C, V]."""
    return torch.logaddexp(
        teacher_logprobs + math.log(teacher_share), student_logprobs + math.log1p(-teacher_share)
    )
