"""The objective's exact properties, in float64."""

from __future__ import annotations

import pytest
import torch

from ammd.distill.divergences import SkewKL
from ammd.distill.objective import (
    StateTerms,
    Weights,
    bounded,
    future_gaps,
    game_value,
    state_terms,
)

STATES, VOCABULARY = 7, 11


def policies(*, spread: float = 2.0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Two random policies as logits, float64 [C, V]."""
    generator = torch.Generator().manual_seed(seed)
    shape = (2, STATES, VOCABULARY)
    teacher, student = spread * torch.randn(shape, generator=generator, dtype=torch.float64)
    return teacher, student


TAKEN = torch.tensor([3, 0, 10, 7, 7, 1, 5])


def terms_of(teacher: torch.Tensor, student: torch.Tensor, weights: Weights) -> StateTerms:
    return state_terms(teacher.log_softmax(-1), student.log_softmax(-1), taken=TAKEN, weights=weights)


def test_values_equal_their_definitions() -> None:
    teacher, student = policies()
    p, q = teacher.softmax(-1), student.softmax(-1)
    found = terms_of(teacher, student, Weights(critic_penalty=0.5))
    kl = torch.nn.functional.kl_div(q.log(), p, reduction="none").sum(-1)
    torch.testing.assert_close(found.kl, kl, rtol=1e-12, atol=1e-12)  # same sums in another order
    torch.testing.assert_close(found.total_variation, 0.5 * (p - q).abs().sum(-1), rtol=1e-12, atol=1e-12)
    # Vincze-Le Cam divergence: the gap under f* is twice the game's value, penalty included.
    le_cam = ((p - q) ** 2 / (p + q)).sum(-1) / 0.5
    torch.testing.assert_close(found.gap, le_cam, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("penalty", [0.3, 1.0, 4.0])
def test_no_other_critic_beats_the_closed_form(penalty: float) -> None:
    teacher, student = policies()
    p, q = teacher.softmax(-1), student.softmax(-1)
    m = 0.5 * (p + q)

    def game(critic: torch.Tensor) -> torch.Tensor:
        return ((p - q) * critic).sum(-1) - penalty * (m * critic**2).sum(-1)

    best = (p - q) / (p + q) / penalty
    value = terms_of(teacher, student, Weights(critic_penalty=penalty)).gap / 2
    torch.testing.assert_close(game(best), value, rtol=1e-10, atol=1e-12)
    generator = torch.Generator().manual_seed(1)
    for scale in (1e-3, 0.1, 1.0):
        other = best + scale * torch.randn(best.shape, generator=generator, dtype=torch.float64)
        assert (game(other) < game(best)).all()


@pytest.mark.parametrize("share", [0.02, 0.2, 0.5, 0.9])
def test_the_closed_form_is_best_under_any_mixture(share: float) -> None:
    teacher, student = policies()
    p, q = teacher.softmax(-1), student.softmax(-1)
    m = share * p + (1 - share) * q
    weights = Weights(game=1.0, critic_penalty=0.7, critic_mixture=share)
    best = (p - q) / (2 * 0.7 * m)
    torch.testing.assert_close(bounded((p / q).log() / 2, weights), best, rtol=1e-9, atol=1e-12)
    assert float(best.abs().max()) <= weights.critic_limit
    found = terms_of(teacher, student, weights)
    torch.testing.assert_close(found.gap, ((p - q) * best).sum(-1), rtol=1e-9, atol=1e-12)
    value = ((p - q) * best).sum(-1) - 0.7 * (m * best**2).sum(-1)
    torch.testing.assert_close(found.best_value, value, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(game_value(p, p - q, best, weights), value, rtol=1e-9, atol=1e-12)
    other = best + 0.1 * torch.randn(best.shape, generator=torch.Generator().manual_seed(1), dtype=best.dtype)
    assert (game_value(p, p - q, other, weights) < value).all()


def test_a_mixture_of_the_student_alone_gives_the_gradient_of_forward_kl() -> None:
    teacher, student = policies()
    kl = terms_of(teacher, student, Weights(kl=1.0)).grad_logits
    game = terms_of(teacher, student, Weights(game=2.0, critic_mixture=1e-9)).grad_logits
    torch.testing.assert_close(game, kl, rtol=1e-6, atol=1e-8)  # a limit


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
def test_at_one_state_the_closed_form_pulls_where_the_skewed_kl_does(share: float) -> None:
    """(P - Q) / m = (P/m - 1) / (1 - a): the two gradients differ by the factor 2 penalty (1 - a)^2 alone."""
    teacher, student = policies()
    game = terms_of(teacher, student, Weights(game=1.0, critic_penalty=0.7, critic_mixture=share)).grad_logits
    skewed = terms_of(teacher, student, Weights(divergence=SkewKL(share))).grad_logits
    torch.testing.assert_close(game * (2 * 0.7 * (1 - share) ** 2), skewed, rtol=1e-9, atol=1e-12)


def test_a_skewed_critic_stays_finite_where_the_policies_share_nothing() -> None:
    weights = Weights(critic_mixture=0.1)
    values = bounded(torch.tensor([-1e4, -50.0, 0.0, 50.0, 1e4]), weights)
    torch.testing.assert_close(values, torch.tensor([-0.5 / 0.9, -0.5 / 0.9, 0.0, 5.0, 5.0]))


def test_gap_is_bounded_by_total_variation() -> None:
    teacher, student = policies(spread=6.0)
    found = terms_of(teacher, student, Weights(critic_penalty=0.7))
    assert (found.gap <= 2 * found.total_variation / 0.7 + 1e-12).all()  # |f| <= 1/penalty
    assert (found.gap >= 0).all()


@pytest.mark.parametrize(
    "weights", [Weights(kl=1.0), Weights(game=1.0), Weights(kl=0.3, game=2.0, critic_penalty=0.5)]
)
def test_gradient_equals_automatic_differentiation(weights: Weights) -> None:
    teacher, student = policies()
    p = teacher.softmax(-1)
    logits = student.clone().requires_grad_()
    q = logits.softmax(-1)
    critic = ((p - q) / (p + q) / weights.critic_penalty).detach()  # the student's step holds it fixed
    loss = weights.kl * (p * (p.log() - q.log())).sum() + weights.game * ((p - q) * critic).sum()
    (expected,) = torch.autograd.grad(loss, logits)
    found = terms_of(teacher, student, weights)
    torch.testing.assert_close(found.grad_logits, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.loss.sum(), loss.detach(), rtol=1e-10, atol=1e-12)


def test_cross_entropy_is_that_of_torch() -> None:
    teacher, student = policies()
    logits = student.clone().requires_grad_()
    expected = torch.nn.functional.cross_entropy(logits, TAKEN, reduction="none")
    (gradient,) = torch.autograd.grad(expected.sum(), logits)
    found = terms_of(teacher, student, Weights(cross_entropy=1.0))
    torch.testing.assert_close(found.loss, expected.detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.grad_logits, gradient, rtol=1e-10, atol=1e-12)


def test_everything_vanishes_at_equality() -> None:
    teacher, _ = policies()
    found = terms_of(teacher, teacher.clone(), Weights(kl=1.0, game=1.0))
    for value in (found.kl, found.gap, found.total_variation, found.grad_logits):
        assert float(value.abs().max()) < 1e-15


def test_a_shift_of_the_critic_by_the_state_alone_changes_nothing() -> None:
    """The gradient sums to zero over the vocabulary, so a constant added to f cannot reach it."""
    teacher, student = policies()
    found = terms_of(teacher, student, Weights(game=1.0))
    assert float(found.grad_logits.sum(-1).abs().max()) < 1e-12


def test_values_stay_positive_for_bfloat16_inputs() -> None:
    teacher, _ = policies(spread=8.0)
    near = (teacher.bfloat16() * 1.01).float()
    found = state_terms(
        teacher.bfloat16().float().log_softmax(-1),
        near.log_softmax(-1),
        taken=TAKEN,
        weights=Weights(kl=1.0, game=1.0),
    )
    assert (found.kl >= 0).all()
    assert (found.gap >= 0).all()


@pytest.mark.parametrize("discount", [0.0, 0.5, 1.0])
def test_future_gaps_equal_the_plain_sum(discount: float) -> None:
    gaps = torch.tensor([0.3, 0.1, 0.4, 0.2, 0.6, 0.5])
    last = torch.tensor([False, False, True, False, False, True])
    expected = []
    for start, end in ((0, 3), (3, 6)):
        for t in range(start, end):
            expected.append(sum(discount ** (u - t) * float(gaps[u]) for u in range(t + 1, end)))
    found = future_gaps(gaps, last, discount=discount, carry=99.0)
    torch.testing.assert_close(found, torch.tensor(expected))
    # The same in two pieces, the second first, with the carry between them.
    tail = future_gaps(gaps[2:], last[2:], discount=discount, carry=99.0)
    head = future_gaps(gaps[:2], last[:2], discount=discount, carry=float(gaps[2] + tail[0]))
    torch.testing.assert_close(torch.cat([head, tail]), found)
