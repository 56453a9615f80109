from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ammd.runtime import torch_batch
from ammd.runtime.likelihood import score_continuations
from ammd.runtime.torch_engine import TorchEngine, load_model

PROMPTS = [[5, 9, 30], [7], [40, 41, 42, 43, 44, 45]]


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> torch.nn.Module:
    return load_model(tiny_checkpoint)


@pytest.fixture(scope="module")
def engine(tiny_checkpoint: Path) -> TorchEngine:
    return TorchEngine(tiny_checkpoint, threads=1, context_tokens=64)


def one_by_one(engine: TorchEngine, prompt: list[int], count: int) -> list[int]:
    tokens = [int(engine.prefill(prompt).argmax())]
    while len(tokens) < count:
        tokens.append(int(engine.decode(tokens[-1]).argmax()))
    return tokens


def test_greedy_is_one_by_one_and_sampling_repeats_with_its_seed(
    model: torch.nn.Module, engine: TorchEngine
) -> None:
    def sampled(seed: int) -> list[list[int]]:
        greedy, drawn, kept = torch_batch.greedy_and_sampled_responses(
            model,
            PROMPTS,
            sampled_prompts=2,
            max_new_tokens=8,
            end_token_ids=frozenset(),
            generator=torch.Generator().manual_seed(seed),
            keep_states=2,
        )
        for states, prompt, response in zip(kept, PROMPTS[:2], greedy[:2], strict=True):
            with torch.inference_mode():  # what the states predict is what was said
                assert model.get_output_embeddings()(states).argmax(-1).tolist() == response
            whole = model.get_decoder()(torch.tensor([[*prompt, *response]])).last_hidden_state[0]
            torch.testing.assert_close(states, whole[len(prompt) - 1 : -1], rtol=1e-3, atol=1e-4)
        assert greedy == [one_by_one(engine, prompt, 8) for prompt in PROMPTS]
        assert len(drawn) == 2
        return drawn

    assert sampled(0) == sampled(0) != sampled(1)


def test_rows_that_end_leave_the_others_to_their_own_way(model: torch.nn.Module, engine: TorchEngine) -> None:
    """Greedy rows stay greedy when rows before them have left the batch, and an end token ends its own row only."""
    expected = [one_by_one(engine, prompt, 8) for prompt in PROMPTS]
    ends = {expected[1][0]}  # the shortest prompt's row leaves first: all others move up one place
    greedy, _, _ = torch_batch.greedy_and_sampled_responses(
        model,
        PROMPTS,
        sampled_prompts=1,
        max_new_tokens=8,
        end_token_ids=frozenset(ends),
        generator=torch.Generator().manual_seed(0),
    )
    cuts = [next((at + 1 for at, token in enumerate(row) if token in ends), 8) for row in expected]
    assert min(cuts) < max(cuts)
    assert greedy == [row[:cut] for row, cut in zip(expected, cuts, strict=True)]


def test_sampled_frequencies_follow_the_distribution(model: torch.nn.Module, engine: TorchEngine) -> None:
    _, responses, _ = torch_batch.greedy_and_sampled_responses(
        model,
        [[5, 9, 30]] * 3000,
        sampled_prompts=3000,
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
    assert_nats_of_single_passes(model, engine, pairs)
    # What all prompts begin with is run once.
    assert_nats_of_single_passes(
        model, engine, [([5, 9, 30, *prompt], response) for prompt, response in pairs]
    )


def assert_nats_of_single_passes(
    model: torch.nn.Module, engine: TorchEngine, pairs: list[tuple[list[int], list[int]]]
) -> None:
    found = {
        place: torch_batch.nats_of(model, states, pairs[place][1])
        for place, states in torch_batch.response_states(model, pairs)
    }
    assert len(found) == len(pairs)
    for place, (prompt, response) in enumerate(pairs):
        ids = [*prompt, *response]
        rows = np.concatenate(list(engine.logits(ids[:-1], start=len(prompt) - 1)))
        logprobs = torch.tensor(rows).log_softmax(-1)
        expected = [-float(logprobs[at, token]) for at, token in enumerate(response)]
        assert found[place] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", ["tiny_checkpoint", "tiny_t5"])
def test_choices_of_many_rows_are_as_likely_as_one_by_one(name: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(name)
    prompts = [[5, 20, 30, 40], [5, 9], [6, 7, 8]]
    choices: list[list[int]] = [[11], [12], [], [11, 13, 14], [11, 13, 15]]
    with TorchEngine(folder, threads=1, context_tokens=32) as engine:
        expected = [one.logprob for prompt in prompts for one in score_continuations(engine, prompt, choices)]
        found = torch_batch.response_logprobs(
            engine.model, [(prompt, choice) for prompt in prompts for choice in choices]
        )
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-5)  # float32 logits
