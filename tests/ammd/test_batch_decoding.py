"""Draws against the distribution; whole responses are tested where they are asked for (rollout, torch_batch)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ammd.batch_decoding import decode_batch, draw
from ammd.encoder_decoder import load_language_model


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


@pytest.mark.parametrize("name", ["tiny_checkpoint", "tiny_t5"])
def test_a_prompt_that_several_rows_have_is_read_once_and_answered_for_each(
    name: str, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(name)
    model = load_language_model(folder, dtype=torch.float32)
    reads = model.get_encoder() if model.config.is_encoder_decoder else model.get_decoder()
    rows_read: list[int] = []
    reads.register_forward_pre_hook(
        lambda _module, _args, said: rows_read.append(len(said["input_ids"])), with_kwargs=True
    )
    prompts = [[5, 20, 30], [5, 9, 8, 7], [5, 20, 30], [5, 20, 30], [5, 9, 8, 7]]
    uniform = torch.rand(6, len(prompts), generator=torch.Generator().manual_seed(0))

    def texts(rows: list[int]) -> list[list[int]]:
        steps = iter(uniform)
        found, _ = decode_batch(
            model,
            [prompts[row] for row in rows],
            max_new_tokens=len(uniform),
            end_token_ids={2},
            choose=lambda logits, there: draw(
                logits, temperature=1.0, uniform=next(steps)[torch.tensor(rows)[there]]
            ),
        )
        return found

    together = texts([0, 1, 2, 3, 4])
    assert max(rows_read[:2]) == 2  # what both begin with is read once more, as one row
    assert together == [texts([row])[0] for row in range(5)]
    assert len({tuple(one) for one in together}) == 5  # each row went on with numbers of its own
