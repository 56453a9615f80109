"""What the student descends at a state.

Forward KL, the moment-matching game with its critic in closed form, any other divergence, and cross-entropy on the
token that was taken, each with its weight.

`state_terms` takes the log-probabilities of both policies at some states, [C, V] float32, and returns values for
every state and the gradient with respect to the student's *logits*; `chunked.py` feeds it.
P is the teacher's next-token distribution, Q the student's, as in the literature.

The game (Jia 2024, arXiv 2406.02959, section 3.2, in expectation over both full distributions): the critic f
ascends the moment gap  sum_a (P - Q)(a) f(a), the student descends it. A critic that may take any value is
kept finite by the penalty  critic_penalty * E_m f^2  under the mean m of both policies, and is then known:

    f* = (P - Q) / (P + Q) / critic_penalty = tanh(log(P/Q) / 2) / critic_penalty

This penalty and the closed form are this project's own choice, not the paper's (which trains its critics).
The student's step holds f* fixed, as in any alternating game: its gradient is  - sum_a grad Q(a) f*(a).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .divergences import Divergence


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """How much each term counts. The values are reported unweighted; the gradient is their weighted sum."""

    kl: float = 0.0
    game: float = 0.0
    critic_penalty: float = 1.0
    cross_entropy: float = 0.0  # of the token that was taken
    divergence: Divergence | None = None  # counts once, where there is one


@dataclass(frozen=True, slots=True, kw_only=True)
class StateTerms:
    """Values and gradient at C states over a vocabulary of V tokens."""

    kl: torch.Tensor  # float32 [C]  forward KL, nats
    gap: torch.Tensor  # float32 [C]  the moment gap under the closed-form critic
    total_variation: torch.Tensor  # float32 [C]  half the L1 distance of the policies
    loss: torch.Tensor  # float32 [C]  the weighted sum
    grad_logits: torch.Tensor  # float32 [C, V]  of the weighted sum, by the student's logits


def state_terms(
    teacher_logprobs: torch.Tensor,
    student_logprobs: torch.Tensor,
    *,
    taken: torch.Tensor,
    weights: Weights,
) -> StateTerms:
    """Return forward KL, moment gap and total variation at each state, and what the student descends.

    Args:
        teacher_logprobs: After log-softmax. float32 [C, V].
        student_logprobs: After log-softmax. float32 [C, V].
        taken: The token that follows each state in the text. int64 [C].
        weights: Of the terms in loss and gradient.
    """
    ratio = teacher_logprobs - student_logprobs
    teacher_probs = teacher_logprobs.exp()
    student_probs = student_logprobs.exp()
    kl = (teacher_probs * ratio).sum(-1).clamp_(min=0)
    critic = ratio.mul_(0.5).tanh_().div_(weights.critic_penalty)
    difference = teacher_probs.sub_(student_probs)
    gap = (difference * critic).sum(-1)
    # d/dz of  - sum_a Q(a) f(a)  is  - Q (f - E_Q f);  d/dz of KL(P || Q) is  Q - P.
    expected = (student_probs * critic).sum(-1, keepdim=True)
    grad = critic.sub_(expected).mul_(student_probs).mul_(-weights.game)
    grad.sub_(difference, alpha=weights.kl)
    loss = weights.kl * kl + weights.game * gap
    if weights.divergence is not None:
        value, slope = weights.divergence(teacher_logprobs, student_logprobs)
        grad.add_(slope).sub_(student_probs * slope.sum(-1, keepdim=True))
        loss += value
    if weights.cross_entropy:
        grad.add_(student_probs, alpha=weights.cross_entropy)
        grad.scatter_add_(1, taken[:, None], grad.new_full((len(taken), 1), -weights.cross_entropy))
        loss -= weights.cross_entropy * student_logprobs.gather(1, taken[:, None]).squeeze(1)
    total_variation = difference.abs_().sum(-1).mul_(0.5)
    return StateTerms(kl=kl, gap=gap, total_variation=total_variation, loss=loss, grad_logits=grad)


def future_gaps(
    gaps: torch.Tensor, last_in_row: torch.Tensor, *, discount: float, carry: float
) -> torch.Tensor:
    """Return, for each token, the discounted sum of the gaps that follow it in its own response.

    `G_t = sum over t' > t of discount^(t'-t) gap_t'`. The paper's expectation also carries discount^t in front of
    each token, which would mute all but the first few; like most implementations this one leaves it out.

    Args:
        gaps: Moment gap at consecutive response tokens, responses one after the other. float32 [C].
        last_in_row: True where a token is the last of its response. bool [C].
        discount: Between 0 and 1.
        carry: `gap + G` of the token that follows these (0 where none does).
    """
    futures = torch.empty_like(gaps)
    following = carry
    for index in range(len(gaps) - 1, -1, -1):
        future = 0.0 if bool(last_in_row[index]) else discount * following
        futures[index] = future
        following = float(gaps[index]) + future
    return futures
