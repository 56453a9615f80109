"""What the student descends at a state.

Forward KL, the moment-matching game with its critic in closed form, any other divergence, and cross-entropy on the
token that was taken, each with its weight.

`state_terms` takes the log-probabilities of both policies at some states, [C, V] float32, and returns values for
every state and the gradient with respect to the student's *logits*; `chunked.py` feeds it.
P is the teacher's next-token distribution, Q the student's, as in the literature.

The game (Jia 2024, arXiv 2406.02959, section 3.2, in expectation over both full distributions): the critic f
ascends the moment gap  sum_a (P - Q)(a) f(a), the student descends it. A critic that may take any value is
kept finite by the penalty  critic_penalty * E_m f^2  under a mixture  m = a P + (1 - a) Q  of both policies, and is
then known:

    f* = (P - Q) / (2 m) / critic_penalty

clipped where it is also bounded. With a = 1/2 this is  tanh(log(P/Q) / 2) / critic_penalty  and the game's value the
Vincze-Le Cam divergence. A smaller a lets f grow, up to 1 / (2 a), where the teacher is far above the student, so that
modes which the student has lost draw it harder; as a falls to 0 the student's gradient becomes that of forward KL. At
one state by itself the gradient is, up to a factor, that of KL(P || m), since  (P - Q) / m = (P/m - 1) / (1 - a): what
the game adds to a skewed divergence is the student's own states, the gaps that follow a token (`score.py`) and critics
that are less than free. This penalty and the closed form are this project's own choice, not the paper's
(which trains its critics); `critics.py` trains them. The student's step holds the critic fixed, as in any
alternating game: its gradient is  - sum_a grad Q(a) f(a).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .divergences import Divergence

_MEAN = 0.5  # the mixture that is the mean of both policies
_GREATEST_LOG_RATIO = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """How much each term counts. The values are reported unweighted; the gradient is their weighted sum."""

    kl: float = 0.0
    game: float = 0.0
    critic_penalty: float = 1.0
    critic_mixture: float = 0.5  # the teacher's share a in the mixture under which the penalty is taken
    critic_bound: float | None = None  # on |f|; None: the penalty's own
    cross_entropy: float = 0.0  # of the token that was taken
    divergence: Divergence | None = None  # counts once, where there is one

    @property
    def critic_limit(self) -> float:
        """Greatest |f| that a critic reaches."""
        share = min(self.critic_mixture, 1 - self.critic_mixture)
        limit = 1 / (2 * share * self.critic_penalty)
        return limit if self.critic_bound is None else min(limit, self.critic_bound)


@dataclass(frozen=True, slots=True, kw_only=True)
class StateTerms:
    """Values and gradient at C states over a vocabulary of V tokens."""

    kl: torch.Tensor  # float32 [C]  forward KL, nats
    gap: torch.Tensor  # float32 [C]  the moment gap under the critic
    game_value: torch.Tensor  # float32 [C]  what the critic ascends: gap less penalty
    best_value: torch.Tensor  # float32 [C]  the same under the closed form, which no critic exceeds
    taken_gap: torch.Tensor | None  # float32 [C]  E_P f - f(taken), one action in E_Q's place; if not exact
    total_variation: torch.Tensor  # float32 [C]  half the L1 distance of the policies
    entropy: torch.Tensor  # float32 [C]  of the student, nats
    loss: torch.Tensor  # float32 [C]  the weighted sum
    grad_logits: torch.Tensor  # float32 [C, V]  of the weighted sum, by the student's logits


def state_terms(
    teacher_logprobs: torch.Tensor,
    student_logprobs: torch.Tensor,
    *,
    taken: torch.Tensor,
    weights: Weights,
    critic: torch.Tensor | None = None,
    exact: bool = True,
) -> StateTerms:
    """Return values of both policies at each state, and what the student descends.

    Args:
        teacher_logprobs: After log-softmax. float32 [C, V].
        student_logprobs: After log-softmax. float32 [C, V].
        taken: The token that follows each state in the text. int64 [C].
        weights: Of the terms in loss and gradient.
        critic: Values f of a learned critic, [C, V]; None takes the closed form.
        exact: Whether the game's gap over the whole vocabulary is part of loss and gradient; an estimator that
            sees single actions only adds its own.
    """
    ratio = teacher_logprobs - student_logprobs
    teacher_probs = teacher_logprobs.exp()
    student_probs = student_logprobs.exp()
    kl = (teacher_probs * ratio).sum(-1).clamp_(min=0)
    best = bounded(ratio.mul_(0.5), weights)
    difference = teacher_probs - student_probs
    game_value, best_value, gap = _game(teacher_probs, difference, best, critic, weights)
    values = best if critic is None else critic
    taken_gap = None
    if not exact:
        taken_gap = (teacher_probs * values).sum(-1) - values.gather(1, taken[:, None]).squeeze(1)
    game = weights.game if exact else 0.0
    # d/dz of  - sum_a Q(a) f(a)  is  - Q (f - E_Q f);  d/dz of KL(P || Q) is  Q - P.
    expected = (student_probs * values).sum(-1, keepdim=True)
    grad = values.sub(expected).mul_(student_probs).mul_(-game)
    grad.sub_(difference, alpha=weights.kl)
    loss = weights.kl * kl + game * gap
    if weights.divergence is not None:
        value, slope = weights.divergence(teacher_logprobs, student_logprobs)
        grad.add_(slope).sub_(student_probs * slope.sum(-1, keepdim=True))
        loss += value
    if weights.cross_entropy:
        grad.add_(student_probs, alpha=weights.cross_entropy)
        grad.scatter_add_(1, taken[:, None], grad.new_full((len(taken), 1), -weights.cross_entropy))
        loss -= weights.cross_entropy * student_logprobs.gather(1, taken[:, None]).squeeze(1)
    return StateTerms(
        kl=kl,
        gap=gap,
        game_value=game_value,
        best_value=best_value,
        taken_gap=taken_gap,
        total_variation=difference.abs_().sum(-1).mul_(0.5),
        entropy=student_probs.mul_(student_logprobs).sum(-1).neg_(),
        loss=loss,
        grad_logits=grad,
    )


def bounded(potential: torch.Tensor, weights: Weights) -> torch.Tensor:
    """Return the critic of a potential u: the closed form for u = log(P/Q) / 2. Changes `potential`.

    That is  (r - 1) / (2 (a r + 1 - a)) / critic_penalty  with r = exp(2 u), clipped to the bound;
    tanh(u) / critic_penalty  for a = 1/2.
    """
    if weights.critic_mixture == _MEAN:
        values = potential.tanh_().div_(weights.critic_penalty)
    else:
        # 1 - 1 / (1 + a (r - 1)), over 2 a; the clamp is far beyond where it is flat.
        share = weights.critic_mixture
        excess = potential.mul_(2).clamp_(max=_GREATEST_LOG_RATIO).expm1_()
        values = excess.mul_(share).add_(1).reciprocal_().neg_().add_(1)
        values.div_(2 * share * weights.critic_penalty)
    if weights.critic_bound is not None:
        values.clamp_(-weights.critic_bound, weights.critic_bound)
    return values


def game_value(
    teacher_probs: torch.Tensor, difference: torch.Tensor, critic: torch.Tensor, weights: Weights
) -> torch.Tensor:
    """Return  sum_a (P - Q) f - penalty sum_a m f^2  with m = P - (1 - a) (P - Q), at each state. [C]."""
    mixture = torch.sub(teacher_probs, difference, alpha=1 - weights.critic_mixture)
    square = mixture.mul_(critic).mul_(critic).sum(-1)
    return (difference * critic).sum(-1) - weights.critic_penalty * square


def _game(
    teacher_probs: torch.Tensor,
    difference: torch.Tensor,
    best: torch.Tensor,
    critic: torch.Tensor | None,
    weights: Weights,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the game's value under the critic, under the closed form, and the critic's gap. [C] each."""
    best_gap = (difference * best).sum(-1)
    best_value = best_gap / 2  # the penalty takes half of the gap, unless there is a bound
    if weights.critic_bound is not None:
        best_value = game_value(teacher_probs, difference, best, weights)
    if critic is None:
        return best_value, best_value, best_gap
    value = game_value(teacher_probs, difference, critic, weights)
    return value, best_value, (difference * critic).sum(-1)


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
    futures = []
    following = carry
    # Numbers, not tensors: on a GPU each look at one would wait for all that runs there.
    for gap, is_last in zip(reversed(gaps.tolist()), reversed(last_in_row.tolist()), strict=True):
        futures.append(0.0 if is_last else discount * following)
        following = gap + futures[-1]
    return gaps.new_tensor(futures[::-1])
