"""Every divergence against its definition and automatic differentiation, in float64, and at its limits."""

from __future__ import annotations

import math

import pytest
import torch

from ammd.distill.divergences import (
    Divergence,
    GeneralisedJSD,
    ReverseKL,
    SkewKL,
    SkewReverseKL,
    TotalVariation,
)
from ammd.distill.objective import Weights, state_terms

STATES, VOCABULARY = 7, 11
TAKEN = torch.zeros(STATES, dtype=torch.long)


def kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    return (p * (p / q).log()).sum(-1)


def definition(divergence: Divergence, p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    match divergence:
        case ReverseKL():
            return kl(q, p)
        case TotalVariation():
            return 0.5 * (p - q).abs().sum(-1)
        case GeneralisedJSD(beta):
            m = beta * p + (1 - beta) * q
            return beta * kl(p, m) + (1 - beta) * kl(q, m)
        case SkewKL(alpha):
            return kl(p, alpha * p + (1 - alpha) * q)
        case SkewReverseKL(alpha):
            return kl(q, (1 - alpha) * p + alpha * q)
    raise AssertionError(divergence)


ALL = [
    ReverseKL(),
    TotalVariation(),
    GeneralisedJSD(0.5),
    GeneralisedJSD(0.1),
    SkewKL(0.1),
    SkewReverseKL(0.1),
    SkewReverseKL(0.6),
]


def policies(*, spread: float = 2.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Two random policies as logits, float64 [C, V]."""
    generator = torch.Generator().manual_seed(0)
    shape = (2, STATES, VOCABULARY)
    teacher, student = spread * torch.randn(shape, generator=generator, dtype=torch.float64)
    return teacher, student


@pytest.mark.parametrize("divergence", ALL, ids=str)
def test_value_and_gradient_equal_the_definition(divergence: Divergence) -> None:
    teacher, student = policies()
    logits = student.clone().requires_grad_()
    expected = definition(divergence, teacher.softmax(-1), logits.softmax(-1))
    (gradient,) = torch.autograd.grad(expected.sum(), logits)
    found = state_terms(
        teacher.log_softmax(-1),
        student.log_softmax(-1),
        taken=TAKEN,
        weights=Weights(divergence=divergence),
    )
    torch.testing.assert_close(found.loss, expected.detach(), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.grad_logits, gradient, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("divergence", ALL, ids=str)
def test_nothing_is_negative_and_equality_is_zero_in_bfloat16_too(divergence: Divergence) -> None:
    teacher, _ = policies(spread=8.0)
    logprobs = teacher.bfloat16().float().log_softmax(-1)
    near = (teacher.bfloat16() * 1.01).float().log_softmax(-1)
    assert (divergence(logprobs, near)[0] >= 0).all()
    value, slope = divergence(logprobs, logprobs.clone())
    assert float(value.max()) < 1e-6
    gradient = slope - logprobs.exp() * slope.sum(-1, keepdim=True)
    assert float(gradient.abs().max()) < 1e-6


@pytest.mark.parametrize("alpha", [0.1, 0.4])
def test_skewed_ones_stay_below_the_log_of_their_share_where_supports_are_apart(alpha: float) -> None:
    apart = torch.tensor([[0.0, -200.0], [-200.0, 0.0]], dtype=torch.float64).log_softmax(-1)
    for divergence in (SkewKL(alpha), SkewReverseKL(alpha)):
        value, slope = divergence(apart[:1], apart[1:])
        assert float(value) == pytest.approx(-math.log(alpha), rel=1e-9)
        assert bool(slope.isfinite().all())


def test_generalised_jsd_tends_to_both_kls() -> None:
    teacher, student = (logits.log_softmax(-1) for logits in policies())
    p, q = teacher.exp(), student.exp()
    near = 1e-6
    forward = GeneralisedJSD(near)(teacher, student)[0] / near
    reverse = GeneralisedJSD(1 - near)(teacher, student)[0] / near
    torch.testing.assert_close(forward, kl(p, q), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(reverse, kl(q, p), rtol=1e-4, atol=1e-6)
