"""Sampling: against transformers' own generation, and its promises about seeds and batches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ammd.distill.checkpoint import load_model
from ammd.distill.rollout import Sampling, sample_responses

PROMPTS = [[1, 20, 30, 40], [1, 50], [1, 60, 70, 80, 90, 100], [1, 33, 34]]


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path):
    return load_model(tiny_checkpoint, dtype=torch.float32)


def sample(
    model, *, temperature: float = 0.0, batch_size: int = 4, seed: int = 0, prompts=PROMPTS, ends=(2,)
):
    sampling = Sampling(max_new_tokens=12, temperature=temperature, end_token_ids=ends, batch_size=batch_size)
    return sample_responses(model, prompts, sampling=sampling, randomness=torch.Generator().manual_seed(seed))


def test_greedy_equals_transformers_generate(model) -> None:
    for prompt, response in zip(PROMPTS, sample(model), strict=True):
        ids = torch.tensor([prompt])
        expected = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, pad_token_id=2
        )
        assert response == expected[0, len(prompt) :].tolist()


def test_greedy_does_not_depend_on_the_batch(model) -> None:
    assert sample(model, batch_size=1) == sample(model, batch_size=4)


def test_what_all_prompts_begin_with_changes_no_text(model) -> None:
    shared = [[1, 20, 30, 40, 50, *rest] for rest in ([60], [61, 62, 63], [64, 65])]
    alone = [sample(model, prompts=[prompt])[0] for prompt in shared]
    assert sample(model, prompts=shared) == alone


def test_states_are_those_that_the_text_was_drawn_from(model) -> None:
    kept: dict[int, torch.Tensor] = {}
    sampling = Sampling(max_new_tokens=12, temperature=1.0, end_token_ids=(2,), batch_size=2)
    responses = sample_responses(
        model,
        PROMPTS,
        sampling=sampling,
        randomness=torch.Generator().manual_seed(1),
        on_states=kept.__setitem__,
    )
    for index, (prompt, response) in enumerate(zip(PROMPTS, responses, strict=True)):
        with torch.inference_mode():
            hiddens = model.base_model(input_ids=torch.tensor([[*prompt, *response]])).last_hidden_state[0]
        torch.testing.assert_close(kept[index], hiddens[len(prompt) - 1 : -1], rtol=1e-3, atol=5e-4)


def test_same_seed_same_text_and_another_seed_another(model) -> None:
    assert sample(model, temperature=1.0, seed=3) == sample(model, temperature=1.0, seed=3)
    assert sample(model, temperature=1.0, seed=3) != sample(model, temperature=1.0, seed=4)


def test_rows_end_at_their_end_token_and_leave_the_others_untouched(model) -> None:
    free = sample(model, ends=(10**6,))
    ends = (free[0][3], free[2][5])  # tokens that some rows meet early
    for response, whole in zip(sample(model, ends=ends), free, strict=True):
        cut = next((index + 1 for index, token in enumerate(whole) if token in ends), len(whole))
        assert response == whole[:cut]
