"""The policy's hidden states: shared first tokens change no value and no gradient."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ammd.distill.batches import build_batch
from ammd.distill.checkpoint import load_model
from ammd.distill.policy import Policy

SYSTEM = (1, 20, 30, 40, 50)
PAIRS = [((*SYSTEM, 60, 70), (80, 2)), ((*SYSTEM, 61), (81, 82, 83, 2)), ((*SYSTEM, 62, 72, 73), (2,))]


def test_shared_first_tokens_change_no_state_and_no_gradient(tiny_checkpoint: Path) -> None:
    batch = build_batch(PAIRS)
    assert batch.shared_tokens == 5
    found = []
    for shared in (0, 3, 5):
        policy = Policy(load_model(tiny_checkpoint, dtype=torch.float32))
        hiddens = policy(replace(batch, shared_tokens=shared))
        weights = torch.randn(hiddens.shape, generator=torch.Generator().manual_seed(0))
        (hiddens * weights).sum().backward()
        grads = [parameter.grad for parameter in policy.parameters() if parameter.grad is not None]
        found.append([hiddens.detach(), *grads])
    for other in found[1:]:
        assert len(other) == len(found[0])
        for mine, plain in zip(other, found[0], strict=True):
            # Another order of summation in float32; a token that counted twice or not at all moves them by 0.1.
            torch.testing.assert_close(mine, plain, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("shared", [0, 5])
def test_states_are_those_of_transformers_one_sequence_at_a_time(tiny_checkpoint: Path, shared: int) -> None:
    policy = Policy(load_model(tiny_checkpoint, dtype=torch.float32))
    with torch.inference_mode():
        hiddens = policy(replace(build_batch(PAIRS), shared_tokens=shared))
        expected = []
        for prompt, response in PAIRS:
            output = policy.model(input_ids=torch.tensor([[*prompt, *response]]), output_hidden_states=True)
            expected.append(output.hidden_states[-1][0, len(prompt) - 1 : -1])
    torch.testing.assert_close(hiddens, torch.cat(expected), rtol=1e-3, atol=2e-4)
