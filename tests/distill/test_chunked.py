"""The chunked loss against dense automatic differentiation, and against an enumerated toy process."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal

import pytest
import torch

from ammd.distill import chunked
from ammd.distill.chunked import States, Sums, matching_loss
from ammd.distill.objective import Weights
from ammd.distill.score import Score

NO_SCORE = Score()
WEIGHTS = Weights(kl=0.4, game=1.3, critic_penalty=0.8)


def problem(rows: int = 10) -> tuple[torch.Tensor, torch.Tensor, States]:
    """Hidden states [N, 6], head [17, 6] and the teacher's side, float32."""
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    last = torch.zeros(rows, dtype=torch.bool)
    last[[min(3, rows - 1), rows - 1]] = True
    states = States(
        teacher_hiddens=normal(rows, 5),
        teacher_head=normal(17, 5),
        targets=torch.randint(0, 17, (rows,), generator=generator),
        last_in_row=last,
    )
    return normal(rows, 6).requires_grad_(), normal(17, 6).requires_grad_(), states


def dense_loss(hiddens: torch.Tensor, head: torch.Tensor, states: States, weights: Weights) -> torch.Tensor:
    p = (states.teacher_hiddens @ states.teacher_head.T).softmax(-1)
    q = (hiddens @ head.T).softmax(-1)
    critic = ((p - q) / (p + q) / weights.critic_penalty).detach()
    kl = (p * (p.log() - q.log())).sum(-1)
    return (weights.kl * kl + weights.game * ((p - q) * critic).sum(-1)).mean()


@pytest.mark.parametrize("chunk_tokens", [1, 3, 4, 10, 64])
def test_chunked_equals_dense_in_value_and_gradient(chunk_tokens: int) -> None:
    hiddens, head, states = problem()
    expected = dense_loss(hiddens, head, states, WEIGHTS)
    expected_grads = torch.autograd.grad(expected, (hiddens, head))
    found, sums = matching_loss(
        hiddens, head, states=states, weights=WEIGHTS, score=NO_SCORE, chunk_tokens=chunk_tokens
    )
    torch.testing.assert_close(found, expected.detach())
    for mine, theirs in zip(torch.autograd.grad(found, (hiddens, head)), expected_grads, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)  # float32, other order of summation
    assert sums.tokens == len(hiddens)


@pytest.mark.parametrize("rows", [1, 5, 17, 100])
def test_the_heads_gradient_is_the_same_in_blocks(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    hiddens, head, states = problem()
    expected = torch.autograd.grad(dense_loss(hiddens, head, states, WEIGHTS), head)[0]
    monkeypatch.setattr(chunked, "_PRODUCT_BYTES", rows * 4 * head.shape[1])
    loss, _ = matching_loss(hiddens, head, states=states, weights=WEIGHTS, score=NO_SCORE, chunk_tokens=4)
    torch.testing.assert_close(torch.autograd.grad(loss, head)[0], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk_tokens", [1, 4, 10])
def test_the_long_view_equals_automatic_differentiation(chunk_tokens: int, temperature: float) -> None:
    hiddens, head, states = problem()
    discount, baseline = 0.6, 0.25
    p = (states.teacher_hiddens @ states.teacher_head.T).softmax(-1)
    logq = (hiddens @ head.T).log_softmax(-1)
    gaps = ((p - logq.exp()) ** 2 / (p + logq.exp())).sum(-1).detach()
    advantages = torch.zeros(len(gaps))
    for start, end in ((0, 4), (4, len(gaps))):
        for t in range(start, end - 1):
            future = sum(discount ** (u - t) * gaps[u] for u in range(t + 1, end))
            advantages[t] = future - baseline
    weights = Weights(game=1.0)
    drew = (logq / temperature).log_softmax(-1)
    taken = drew.gather(1, states.targets[:, None]).squeeze(1)
    expected = dense_loss(hiddens, head, states, weights) + (taken * advantages).mean()
    expected_grads = torch.autograd.grad(expected, (hiddens, head))
    found, _ = matching_loss(
        hiddens,
        head,
        states=states,
        weights=weights,
        score=Score(discount=discount, baseline=baseline, temperature=temperature),
        chunk_tokens=chunk_tokens,
    )
    for mine, theirs in zip(torch.autograd.grad(found, (hiddens, head)), expected_grads, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("estimator", "temperature"), [("full", 1.0), ("full", 0.5), ("sampled", 1.0)])
def test_mean_gradient_over_all_sequences_is_the_exact_policy_gradient(
    toy_process: Any, estimator: Literal["full", "sampled"], temperature: float
) -> None:
    """Vocabulary 3, horizon 3, all 27 sequences: the estimator's expectation is the true gradient (discount 1).

    At another temperature the sequences come from the student at that temperature, whose policy is judged at 1.
    """
    student_table = toy_process.student_table
    p = toy_process.teacher_table.T.softmax(-1)
    q = student_table.T.softmax(-1)
    drew = (student_table.T / temperature).softmax(-1)
    critic = ((p - q) / (p + q)).detach()
    gaps = ((p - q) * critic).sum(-1)
    expected = torch.zeros(())
    estimate = torch.zeros_like(student_table)
    for rows, tokens in toy_process.sequences():
        probability = drew[rows, tokens].prod()
        expected = expected + probability * gaps[rows].sum()
        loss, _ = matching_loss(
            toy_process.one_hot[rows],
            student_table,
            states=toy_process.states(rows, tokens),
            weights=Weights(game=1.0),
            score=Score(estimator=estimator, discount=1.0, temperature=temperature),
            chunk_tokens=2,
        )
        (grad,) = torch.autograd.grad(loss, student_table)
        # The loss is a mean over `horizon` tokens.
        estimate += float(probability.detach()) * toy_process.horizon * grad
    (exact,) = torch.autograd.grad(expected, student_table)
    torch.testing.assert_close(estimate, exact, rtol=1e-4, atol=1e-6)  # float32 sums of 27 sequences


def test_loss_and_gradient_vanish_when_student_equals_teacher() -> None:
    _, _, states = problem()
    hiddens = states.teacher_hiddens.clone().requires_grad_()
    head = states.teacher_head.clone().requires_grad_()
    loss, sums = matching_loss(hiddens, head, states=states, weights=WEIGHTS, score=NO_SCORE, chunk_tokens=4)
    loss.backward()
    assert float(loss.detach()) < 1e-6
    assert sums.gap < 1e-6
    assert float(hiddens.grad.abs().max()) < 1e-6
    assert float(head.grad.abs().max()) < 1e-6


def test_loss_scales_like_any_other_when_differentiated() -> None:
    hiddens, head, states = problem()
    grads = []
    for scale in (1.0, 0.25):
        loss, _ = matching_loss(hiddens, head, states=states, weights=WEIGHTS, score=NO_SCORE, chunk_tokens=4)
        grads.append(torch.autograd.grad(loss * scale, (hiddens, head)))
    for plain, scaled in zip(*grads, strict=True):
        torch.testing.assert_close(scaled, plain * 0.25)


def test_losses_and_gradients_of_pieces_add_up_to_the_batch() -> None:
    hiddens, head, states = problem()
    whole, expected = matching_loss(
        hiddens, head, states=states, weights=WEIGHTS, score=Score(discount=0.5), chunk_tokens=4
    )
    gradients = torch.autograd.grad(whole, (hiddens, head))
    cut = int(states.last_in_row.nonzero()[0]) + 1
    sums, total = Sums(tokens=len(hiddens)), torch.zeros(())
    for rows in (slice(0, cut), slice(cut, None)):
        part = States(
            teacher_hiddens=states.teacher_hiddens[rows],
            teacher_head=states.teacher_head,
            targets=states.targets[rows],
            last_in_row=states.last_in_row[rows],
        )
        loss, _ = matching_loss(
            hiddens[rows],
            head,
            states=part,
            weights=WEIGHTS,
            score=Score(discount=0.5),
            chunk_tokens=4,
            sums=sums,
        )
        total = total + loss
    torch.testing.assert_close(total, whole)
    torch.testing.assert_close(torch.autograd.grad(total, (hiddens, head)), gradients)
    assert asdict(sums) == pytest.approx(asdict(expected))


def test_a_baseline_changes_no_mean_gradient() -> None:
    """The sampled estimator over all tokens at one state, weighted by their probability: any baseline cancels."""
    hiddens, head, states = problem(rows=1)
    q = (hiddens @ head.T).softmax(-1)[0].detach()
    grads = []
    for baseline in (0.0, 3.0):
        total = torch.zeros_like(hiddens)
        for token in range(len(head)):
            taken = States(
                teacher_hiddens=states.teacher_hiddens,
                teacher_head=states.teacher_head,
                targets=torch.tensor([token]),
                last_in_row=torch.tensor([True]),
            )
            loss, _ = matching_loss(
                hiddens,
                head,
                states=taken,
                weights=Weights(game=1.0),
                score=Score(estimator="sampled", baseline=baseline),
                chunk_tokens=4,
            )
            total += float(q[token]) * torch.autograd.grad(loss, hiddens)[0]
        grads.append(total)
    exact, _ = matching_loss(
        hiddens, head, states=states, weights=Weights(game=1.0), score=NO_SCORE, chunk_tokens=4
    )
    (expected,) = torch.autograd.grad(exact, hiddens)
    for found in grads:
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_on_the_teachers_texts_the_sampled_estimator_draws_the_students_own_tokens() -> None:
    """Mean over 40,000 draws at each of three states, against the exact gradient."""
    hiddens, head, states = problem(rows=3)
    copies = 40_000
    many = States(
        teacher_hiddens=states.teacher_hiddens.repeat(copies, 1),
        teacher_head=states.teacher_head,
        targets=states.targets.repeat(copies),
        last_in_row=states.last_in_row.repeat(copies),
    )
    score = Score(estimator="sampled", own_texts=False, generator=torch.Generator().manual_seed(0))
    weights = Weights(game=1.0)
    loss, _ = matching_loss(
        hiddens.repeat(copies, 1), head, states=many, weights=weights, score=score, chunk_tokens=4096
    )
    (found,) = torch.autograd.grad(loss, hiddens)
    exact, _ = matching_loss(hiddens, head, states=states, weights=weights, score=NO_SCORE, chunk_tokens=4)
    (expected,) = torch.autograd.grad(exact, hiddens)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02 * float(expected.abs().max()))


def test_the_immediate_estimator_only_logs_what_follows() -> None:
    hiddens, head, states = problem()
    weights = Weights(game=1.0)
    near, sums = matching_loss(
        hiddens,
        head,
        states=states,
        weights=weights,
        score=Score(estimator="immediate", discount=0.6, baseline=0.3),
        chunk_tokens=4,
    )
    plain, _ = matching_loss(hiddens, head, states=states, weights=weights, score=NO_SCORE, chunk_tokens=4)
    grads = [torch.autograd.grad(loss, hiddens)[0] for loss in (near, plain)]
    torch.testing.assert_close(grads[0], grads[1], rtol=0, atol=0)
    assert sums.future_gap > 0
    assert sums.answered_gap == 0


def test_entropy_is_that_of_torch() -> None:
    hiddens, head, states = problem()
    _, sums = matching_loss(hiddens, head, states=states, weights=WEIGHTS, score=NO_SCORE, chunk_tokens=4)
    entropy = torch.distributions.Categorical(logits=(hiddens @ head.T).detach()).entropy().mean()
    assert sums.entropy_nats == pytest.approx(float(entropy), rel=1e-5)


def test_a_bound_far_below_the_penaltys_own_gives_total_variation() -> None:
    """With |f| <= B the critic is clipped; as the penalty vanishes the gap is 2 B TV."""
    hiddens, head, states = problem()
    weights = Weights(game=1.0, critic_penalty=1e-4, critic_bound=0.5)
    _, sums = matching_loss(hiddens, head, states=states, weights=weights, score=NO_SCORE, chunk_tokens=4)
    assert sums.gap == pytest.approx(2 * 0.5 * sums.total_variation, rel=1e-3)
    assert sums.best_value == pytest.approx(sums.gap, rel=1e-3)
