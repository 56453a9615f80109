"""Draws against the distribution; whole responses are tested where they are asked for (rollout, torch_batch)."""

from __future__ import annotations

import torch

from ammd.batch_decoding import draw


def test_draws_follow_the_distribution() -> None:
    """20,000 draws: each frequency within 5 standard errors of its probability."""
    probs = torch.tensor([0.5, 0.3, 0.15, 0.05, 0.0])
    draws = draw(
        probs.log().repeat(20_000, 1),
        temperature=1.0,
        uniform=torch.rand(20_000, generator=torch.Generator().manual_seed(0)),
    )
    frequency = torch.bincount(draws, minlength=5) / 20_000
    assert ((frequency - probs).abs() <= 5 * (probs * (1 - probs) / 20_000).sqrt()).all()


def test_no_rows_are_drawn_from_no_rows() -> None:
    none = draw(torch.empty(0, 5), temperature=1.0, uniform=torch.empty(0))
    assert none.shape == (0,)
    assert none.dtype == torch.long
