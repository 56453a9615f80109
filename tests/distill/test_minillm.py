"""MiniLLM's estimator against enumeration and against its formula under automatic differentiation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ammd.batch_decoding import draw_mixed
from ammd.distill.checkpoint import load_model
from ammd.distill.chunked import States, matching_loss
from ammd.distill.divergences import ReverseKL
from ammd.distill.minillm import SequenceScore
from ammd.distill.objective import Weights
from ammd.distill.rollout import Sampling, sample_mixed

WEIGHTS = Weights(divergence=ReverseKL())


def test_mean_gradient_over_all_sequences_is_that_of_the_sequences_kl(toy_process: Any) -> None:
    """Vocabulary 3, horizon 3, texts from the student itself, sums instead of means: then it is exact."""
    student_table = toy_process.student_table
    logp, logq = toy_process.teacher_table.T.log_softmax(-1), student_table.T.log_softmax(-1)
    kl = torch.zeros(())
    estimate = torch.zeros_like(student_table)
    for rows, tokens in toy_process.sequences():
        own = logq[rows, tokens]
        kl = kl + own.sum().exp() * (own - logp[rows, tokens]).sum()
        score = SequenceScore(ratio_clip=0.2, length_normalised=False)
        loss, _ = matching_loss(
            toy_process.one_hot[rows],
            student_table,
            states=toy_process.states(rows, tokens, drawn_logprobs=own.detach()),
            weights=WEIGHTS,
            score=score,
            chunk_tokens=2,
        )
        (grad,) = torch.autograd.grad(loss, student_table)
        # The loss is a mean over `horizon` tokens.
        estimate += float(own.detach().sum().exp()) * toy_process.horizon * grad
    (exact,) = torch.autograd.grad(kl, student_table)
    torch.testing.assert_close(estimate, exact, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("chunk_tokens", [1, 4, 16])
def test_ratio_clip_and_means_follow_the_formula(chunk_tokens: int) -> None:
    generator = torch.Generator().manual_seed(3)
    hiddens = torch.randn(8, 5, generator=generator).requires_grad_()
    head, teacher_hiddens, teacher_head = (torch.randn(size, 5, generator=generator) for size in (11, 8, 11))
    targets = torch.randint(0, 11, (8,), generator=generator)
    last = torch.zeros(8, dtype=torch.bool)
    last[[4, 7]] = True
    logp = (teacher_hiddens @ teacher_head.T).log_softmax(-1)
    logq = (hiddens @ head.T).log_softmax(-1)
    own, theirs = (one.gather(1, targets[:, None]).squeeze(1) for one in (logq, logp))
    drawn = own.detach() + 0.5 * torch.randn(8, generator=generator)
    costs = (own - theirs).detach()
    futures = torch.zeros(8)
    for start, end in ((0, 5), (5, 8)):
        for t in range(start, end - 1):
            futures[t] = costs[t + 1 : end].mean()
    ratio = (own - drawn).exp()
    kl = (logq.exp() * (logq - logp)).sum(-1)
    long_term = torch.maximum(ratio * futures, ratio.clamp(0.8, 1.2) * futures)
    assert ((ratio < 0.8) | (ratio > 1.2)).any()
    expected = (ratio.detach() * kl + long_term).mean()
    states = States(
        teacher_hiddens=teacher_hiddens,
        teacher_head=teacher_head,
        targets=targets,
        last_in_row=last,
        drawn_logprobs=drawn,
    )
    found, _ = matching_loss(
        hiddens,
        head,
        states=states,
        weights=WEIGHTS,
        score=SequenceScore(ratio_clip=0.2),
        chunk_tokens=chunk_tokens,
    )
    torch.testing.assert_close(found, expected.detach())
    grads = [torch.autograd.grad(loss, hiddens)[0] for loss in (found, expected)]
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-6)


def test_draws_from_a_mixture_follow_it() -> None:
    """20,000 draws: each frequency within 5 standard errors; log-probabilities are the mixture's."""
    model, guide = torch.tensor([0.7, 0.2, 0.1, 0.0]), torch.tensor([0.0, 0.1, 0.1, 0.8])
    mixture = 0.75 * model + 0.25 * guide
    logits = torch.stack([model.log(), guide.log()])[:, None].repeat(1, 20_000, 1)
    uniform = torch.rand(20_000, generator=torch.Generator().manual_seed(0))
    drawn, logprobs = draw_mixed(logits, guide_share=0.25, uniform=uniform)
    frequency = torch.bincount(drawn, minlength=4) / 20_000
    assert ((frequency - mixture).abs() <= 5 * (mixture * (1 - mixture) / 20_000).sqrt()).all()
    torch.testing.assert_close(logprobs, mixture.log()[drawn])


def test_a_guide_reads_along(tiny_checkpoint: Path) -> None:
    """A guide equal to the model leaves the mixture what the model is; kept log-probabilities are its own."""
    model = load_model(tiny_checkpoint, dtype=torch.float32)
    prompts = [(1, 20, 30), (1, 20, 31, 33), (1, 20, 32)]
    sampling = Sampling(max_new_tokens=12, temperature=1.0, end_token_ids=(2,), batch_size=2)
    generator = torch.Generator().manual_seed(0)
    found = sample_mixed(model, model, prompts, sampling=sampling, guide_share=0.3, randomness=generator)
    for prompt, (response, logprobs) in zip(prompts, found, strict=True):
        assert len(response) == len(logprobs)
        token_ids = torch.tensor([[*prompt, *response]])
        with torch.inference_mode():
            logits = model(input_ids=token_ids).logits[0, len(prompt) - 1 : -1]
        own = logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None]).squeeze(1)
        torch.testing.assert_close(logprobs, own, rtol=1e-3, atol=1e-3)
