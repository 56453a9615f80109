from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ammd.runtime import torch_batch
from ammd.runtime.torch_engine import TorchEngine, cast_parameters, load_model

PROMPTS = [[5, 9, 30], [7], [40, 41, 42, 43, 44, 45]]


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> torch.nn.Module:
    return load_model(tiny_checkpoint)


@pytest.fixture(scope="module")
def engine(tiny_checkpoint: Path) -> TorchEngine:
    return TorchEngine(tiny_checkpoint, threads=1, context_tokens=64)


def greedy(engine: TorchEngine, prompt: list[int], count: int) -> list[int]:
    tokens = [int(engine.prefill(prompt).argmax())]
    while len(tokens) < count:
        tokens.append(int(engine.decode(tokens[-1]).argmax()))
    return tokens


def test_batch_of_unequal_prompts_equals_one_by_one(model: torch.nn.Module, engine: TorchEngine) -> None:
    found = torch_batch.greedy_responses(model, PROMPTS, max_new_tokens=8, end_token_ids=frozenset())
    assert found == [greedy(engine, prompt, 8) for prompt in PROMPTS]


def test_end_token_ends_its_own_row_only(model: torch.nn.Module, engine: TorchEngine) -> None:
    expected = [greedy(engine, prompt, 8) for prompt in PROMPTS]
    end = expected[0][2]
    found = torch_batch.greedy_responses(model, PROMPTS, max_new_tokens=8, end_token_ids=frozenset({end}))
    assert found == [row[: row.index(end) + 1] if end in row else row for row in expected]


def test_sampling_repeats_with_its_seed(model: torch.nn.Module) -> None:
    def sampled(seed: int) -> list[list[int]]:
        greedy, drawn = torch_batch.greedy_and_sampled_responses(
            model,
            PROMPTS,
            max_new_tokens=8,
            end_token_ids=frozenset(),
            generator=torch.Generator().manual_seed(seed),
        )
        assert greedy == torch_batch.greedy_responses(
            model, PROMPTS, max_new_tokens=8, end_token_ids=frozenset()
        )
        return drawn

    assert sampled(0) == sampled(0) != sampled(1)


def test_sampled_frequencies_follow_the_distribution(model: torch.nn.Module, engine: TorchEngine) -> None:
    _, responses = torch_batch.greedy_and_sampled_responses(
        model,
        [[5, 9, 30]] * 3000,
        max_new_tokens=1,
        end_token_ids=frozenset(),
        generator=torch.Generator().manual_seed(0),
    )
    counts = np.bincount([row[0] for row in responses], minlength=engine.vocab_size)
    probs = torch.tensor(engine.prefill([5, 9, 30]).copy()).softmax(-1).numpy()
    # 4.5 standard deviations of 3000 draws for each of 268 tokens
    assert (np.abs(counts / 3000 - probs) < 4.5 * np.sqrt(probs / 3000)).all()


def test_response_nats_equal_those_of_single_passes(model: torch.nn.Module, engine: TorchEngine) -> None:
    pairs = [(PROMPTS[0], [8, 2]), (PROMPTS[1], [9]), (PROMPTS[2], [3, 4, 5])]
    expected = []
    for prompt, response in pairs:
        ids = [*prompt, *response]
        rows = np.concatenate(list(engine.logits(ids[:-1], start=len(prompt) - 1)))
        logprobs = torch.tensor(rows).log_softmax(-1)
        expected += [-float(logprobs[place, token]) for place, token in enumerate(response)]
    assert sorted(torch_batch.response_nats(model, pairs)) == pytest.approx(sorted(expected), abs=1e-4)


def test_cast_parameters_give_what_transformers_loads_in_that_dtype(tiny_checkpoint: Path) -> None:
    """Above all the rotary frequencies stay float32: rounded, they would turn far tokens by a wrong angle."""
    from transformers import AutoModelForCausalLM

    model = load_model(tiny_checkpoint)
    cast_parameters(model, torch.bfloat16)
    loaded = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.bfloat16).eval()
    ids = torch.arange(3, 200).unsqueeze(0)
    with torch.inference_mode():
        assert torch.equal(model(input_ids=ids).logits, loaded(input_ids=ids).logits)
    assert model.base_model.rotary_emb.inv_freq.dtype == torch.float32
