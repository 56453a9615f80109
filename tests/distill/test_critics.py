"""Learned critics against the closed form, automatic differentiation, and what must not change."""

from __future__ import annotations

import pytest
import torch

from ammd.distill.adversary import Adversary, Blocks, ascent_gradients
from ammd.distill.chunked import States, matching_loss
from ammd.distill.critic_settings import LearnedCritic, LinearCritic, LowRankCritic, MlpCritic
from ammd.distill.critics import CriticHead, Potential, Views
from ammd.distill.fleet import Fleet
from ammd.distill.objective import Weights
from ammd.distill.score import Score
from ammd.errors import DistillError

STATES, VOCABULARY, WIDTH = 6, 9, 5
WEIGHTS = Weights(game=1.0, critic_penalty=0.7)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def views(*, same_head: bool = True, teacher_width: int = WIDTH, rows: int = STATES) -> Views:
    teacher_head = normal(VOCABULARY, teacher_width, seed=1)
    student_head = teacher_head if same_head else normal(VOCABULARY, WIDTH, seed=2)
    return Views(
        student_hiddens=normal(rows, WIDTH, seed=3),
        student_head=student_head,
        teacher_hiddens=normal(rows, teacher_width, seed=4),
        teacher_head=teacher_head,
    )


def policies(seen: Views) -> tuple[torch.Tensor, torch.Tensor]:
    p = (seen.teacher_hiddens @ seen.teacher_head.T).softmax(-1)
    q = (seen.student_hiddens @ seen.student_head.T).softmax(-1)
    return p, q


def loss_and_sums(seen: Views, critic: Potential | None, weights: Weights = WEIGHTS):
    hiddens = seen.student_hiddens.clone().requires_grad_()
    states = States(
        teacher_hiddens=seen.teacher_hiddens,
        teacher_head=seen.teacher_head,
        targets=torch.zeros(len(seen), dtype=torch.long),
        last_in_row=torch.ones(len(seen), dtype=torch.bool),
    )
    loss, sums = matching_loss(
        hiddens,
        seen.student_head,
        states=states,
        weights=weights,
        score=Score(),
        chunk_tokens=4,
        critic=critic,
    )
    (gradient,) = torch.autograd.grad(loss, hiddens)
    return loss.detach(), gradient, sums


def tabular(rows: int) -> Views:
    """Every state has a hidden unit of its own: a linear critic on it may take any value."""
    return Views(
        student_hiddens=torch.eye(rows),
        student_head=normal(VOCABULARY, rows, seed=2),
        teacher_hiddens=torch.eye(rows),
        teacher_head=normal(VOCABULARY, rows, seed=1),
    )


@pytest.mark.parametrize("bound", [None, 0.4])
def test_a_free_critic_learns_the_closed_form(bound: float | None) -> None:
    """Clipped, where it is also bounded."""
    seen = tabular(STATES)
    weights = Weights(game=1.0, critic_penalty=0.7, critic_bound=bound)
    wanted = LinearCritic(inputs="student", start="zero", ascents=2000, lr=0.01, max_change=1)
    critic = Adversary(wanted, seen, seed=0, fleet=Fleet())
    _, _, sums = loss_and_sums(seen, critic.potential(seen), weights)
    assert sums.critic_share == pytest.approx(0, abs=1e-6)
    critic.ascend(seen, weights)
    potential = critic.potential(seen)
    _, _, sums = loss_and_sums(seen, potential, weights)
    assert 0.999 < sums.critic_share <= 1 + 1e-5
    p, q = policies(seen)
    best = (p - q) / (p + q) / 0.7
    found = (potential.projected @ potential.matrix.T).tanh() / 0.7
    if bound is not None:
        best, found = best.clamp(-bound, bound), found.clamp(-bound, bound)
    torch.testing.assert_close(found, best, rtol=0, atol=0.02)


@pytest.mark.parametrize(("bound", "share"), [(None, 0.5), (0.8, 0.5), (None, 0.15)])
@pytest.mark.parametrize("wanted", [LinearCritic(), LowRankCritic(rank=3, start="zero"), MlpCritic()])
def test_ascent_gradients_equal_automatic_differentiation(
    wanted: LearnedCritic, bound: float | None, share: float
) -> None:
    seen = views(same_head=False)
    weights = Weights(game=1.0, critic_penalty=0.7, critic_bound=bound, critic_mixture=share)
    head = CriticHead(wanted, seen)
    with torch.no_grad():
        for number, parameter in enumerate(head.parameters()):
            parameter += 0.3 * normal(*parameter.shape, seed=number)
    p, q = policies(seen)
    potential = head.potential(seen)
    u = potential.projected @ potential.matrix.T
    if potential.adds_partition:
        student = (seen.student_hiddens @ seen.student_head.T).logsumexp(-1, keepdim=True)
        teacher = (seen.teacher_hiddens @ seen.teacher_head.T).logsumexp(-1, keepdim=True)
        u = u + 0.5 * (student - teacher)
    ratio = (2 * u).exp()
    f = (ratio - 1) / (2 * (share * ratio + 1 - share)) / 0.7
    if bound is not None:
        f = f.clamp(-bound, bound)
        assert (f.abs() == bound).any()
    mixture = share * p + (1 - share) * q
    value = (((p - q) * f).sum(-1) - 0.7 * (mixture * f**2).sum(-1)).mean()
    found = ascent_gradients(potential, Blocks(potential, seen, weights), weights)
    trained = [
        (tensor, mine)
        for tensor, mine in zip((potential.projected, potential.matrix), found, strict=True)
        if tensor.requires_grad
    ]
    theirs = torch.autograd.grad(value, [tensor for tensor, _ in trained])
    for (_, mine), expected in zip(trained, theirs, strict=True):
        # Sums of float32 in another order, which depends on the threads.
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("wanted", "same_head"),
    [
        (LinearCritic(start="log_ratio"), False),
        (LowRankCritic(start="log_ratio", inputs="student", rank=2), False),
        (MlpCritic(start="log_ratio"), False),
        (LinearCritic(), False),
        (LowRankCritic(), True),  # the teacher's unembedding is also the student's
        (MlpCritic(), True),
    ],
)
def test_a_critic_that_starts_at_the_closed_form_is_it(wanted: LearnedCritic, same_head: bool) -> None:
    seen = views(same_head=same_head)
    head = CriticHead(wanted, seen)
    loss, gradient, sums = loss_and_sums(seen, head.potential(seen))
    closed_loss, closed_gradient, closed_sums = loss_and_sums(seen, None)
    torch.testing.assert_close(loss, closed_loss)
    torch.testing.assert_close(gradient, closed_gradient, rtol=1e-4, atol=1e-6)
    assert sums.gap == pytest.approx(closed_sums.gap, rel=1e-5)
    assert sums.critic_share == pytest.approx(1, abs=1e-5)


def test_the_student_descends_the_learned_critic_held_fixed() -> None:
    seen = views(same_head=False)
    potential = Potential(projected=normal(STATES, 4, seed=7), matrix=normal(VOCABULARY, 4, seed=8))
    p, _ = policies(seen)
    f = (potential.projected @ potential.matrix.T).tanh() / 0.7
    hiddens = seen.student_hiddens.clone().requires_grad_()
    expected = ((p - (hiddens @ seen.student_head.T).softmax(-1)) * f).sum(-1).mean()
    loss, gradient, sums = loss_and_sums(seen, potential)
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, hiddens)[0], rtol=1e-4, atol=1e-6)
    assert sums.critic_share <= 1  # the closed form is the best of all


def test_at_equality_only_the_penalty_moves_a_critic_and_pulls_it_to_zero() -> None:
    seen = views()
    equal = Views(
        student_hiddens=seen.teacher_hiddens,
        student_head=seen.teacher_head,
        teacher_hiddens=seen.teacher_hiddens,
        teacher_head=seen.teacher_head,
    )
    nothing = Potential(projected=torch.zeros(STATES, 4), matrix=normal(VOCABULARY, 4))
    assert float(ascent_gradients(nothing, Blocks(nothing, equal, WEIGHTS), WEIGHTS)[0].abs().max()) == 0
    potential = Potential(projected=normal(STATES, 4), matrix=normal(VOCABULARY, 4, seed=1))
    p, _ = policies(equal)
    f = (potential.projected @ potential.matrix.T).tanh() / 0.7
    _, _, sums = loss_and_sums(equal, potential)
    assert sums.gap == pytest.approx(0, abs=1e-6)
    assert sums.game_value == pytest.approx(float(-0.7 * (p * f**2).sum(-1).mean()), rel=1e-4)
    wanted = LinearCritic(inputs="teacher", start="zero", ascents=300, lr=0.02)
    critic = Adversary(wanted, equal, seed=0, fleet=Fleet())
    with torch.no_grad():
        critic._head.matrix += 0.2
    critic.ascend(equal, WEIGHTS)
    assert critic.rms < 0.02


@pytest.mark.parametrize("max_change", [0.02, 0.1])
def test_one_ascent_changes_a_critic_by_no_more_than_is_allowed(max_change: float) -> None:
    seen = views()
    wanted = LowRankCritic(start="zero", lr=10.0, ascents=1, max_change=max_change)
    critic = Adversary(wanted, seen, seed=0, fleet=Fleet())
    before = critic.potential(seen)
    critic.ascend(seen, WEIGHTS)
    after = critic.potential(seen)
    p, q = policies(seen)
    change = (after.projected @ after.matrix.T).tanh() - (before.projected @ before.matrix.T).tanh()
    rms = float((0.5 * (p + q) * change**2).sum(-1).mean().sqrt())
    assert 0.5 * max_change < rms <= 1.1 * max_change


def test_both_policies_are_left_alone() -> None:
    seen = views(same_head=False)
    kept = [seen.student_head.clone(), seen.teacher_head.clone()]
    critic = Adversary(LinearCritic(), seen, seed=0, fleet=Fleet())
    critic.ascend(seen, WEIGHTS)
    torch.testing.assert_close([seen.student_head, seen.teacher_head], kept, rtol=0, atol=0)


def test_the_difference_of_logits_needs_policies_of_one_width() -> None:
    with pytest.raises(DistillError, match="the student's states have 5 numbers, the teacher's 4"):
        CriticHead(LowRankCritic(), views(same_head=False, teacher_width=4))
    CriticHead(LinearCritic(), views(same_head=False, teacher_width=4))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"inputs": "student"}, 'start "difference" needs inputs "both"'),
        ({"rank": 8}, 'start "difference" needs the teacher\'s unembedding'),
    ],
)
def test_settings_that_contradict_each_other_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LowRankCritic.model_validate(fields)
