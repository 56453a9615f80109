from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ammd.runtime.divergence import (
    HiddenStates,
    compare,
    compare_positions,
    load_hidden_states,
    row_divergences,
)

RANDOM = np.random.default_rng(0)
TARGETS = [7 * position % 50 for position in range(70)]


def plain_kl(reference: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """KL from its definition, in float64."""

    def logprobs(values: np.ndarray) -> np.ndarray:
        values = values.astype(np.float64)
        values = values - values.max(axis=-1, keepdims=True)
        return values - np.log(np.exp(values).sum(axis=-1, keepdims=True))

    p, q = logprobs(reference), logprobs(logits)
    return (np.exp(p) * (p - q)).sum(axis=-1)


@pytest.mark.parametrize("size", [1e-3, 1e-2, 0.3, 3.0])
def test_divergence_equals_its_definition(size: float) -> None:
    reference = RANDOM.normal(scale=4, size=(5, 3000)).astype(np.float32)
    logits = reference + RANDOM.normal(scale=size, size=reference.shape).astype(np.float32)
    # float32 sums of 3000 terms: 2e-7 absolute, far below the 1e-3 nats of the strictest limit
    np.testing.assert_allclose(
        row_divergences(reference, logits), plain_kl(reference, logits), rtol=1e-3, atol=2e-7
    )


def test_divergence_ignores_a_constant_shift() -> None:
    reference = RANDOM.normal(size=(2, 100)).astype(np.float32)
    np.testing.assert_allclose(row_divergences(reference, reference + 7), 0, atol=1e-6)  # rounding of + 7


def test_divergence_of_opposed_distributions_is_that_of_its_definition() -> None:
    """In float32 the reference gives no probability at all to what the model likes."""
    reference = np.array([[200.0, 0.0, 0.0], [60.0, 0.0, -30.0]], dtype=np.float32)
    np.testing.assert_allclose(
        row_divergences(reference, -reference), plain_kl(reference, -reference), rtol=1e-5
    )


def test_positions_equal_those_of_torch() -> None:
    import torch

    states = hidden_states(positions=70)
    logits = states.logits(0, 70) + RANDOM.normal(scale=0.5, size=(70, 50)).astype(np.float32)
    found = compare_positions(states, [logits[:33], logits[33:]], TARGETS)
    p, q = (torch.tensor(values).double().log_softmax(-1) for values in (states.logits(0, 70), logits))
    expected = torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1)
    np.testing.assert_allclose(found.kl_nats, expected, rtol=1e-3)  # float32 sums
    np.testing.assert_allclose(found.tv, (p.exp() - q.exp()).abs().sum(-1) / 2, rtol=1e-4)
    np.testing.assert_allclose(found.reference_top_prob, p.exp().max(-1).values, rtol=1e-5)
    assert (found.agrees == (p.argmax(-1) == q.argmax(-1)).numpy()).all()


def test_distributions_without_a_common_token_are_at_the_largest_variation() -> None:
    states = HiddenStates(
        hidden=np.array([[300.0]], dtype=np.float32), unembedding=np.array([[1.0], [-1.0]], dtype=np.float32)
    )
    assert compare_positions(states, [-states.logits(0, 1)], [0]).tv == pytest.approx(1)


def test_comparison_of_a_model_with_itself_is_zero() -> None:
    states = hidden_states(positions=70)
    result = compare(states, [states.logits(0, 70)], TARGETS)
    assert (result.kl_nats, result.top1_agreement, result.max_logit_error) == (0, 1, 0)
    assert result.positions == 70


def test_perplexity_is_that_of_the_next_tokens() -> None:
    import torch

    states = hidden_states(positions=70)
    logits = states.logits(0, 70) + RANDOM.normal(scale=0.5, size=(70, 50)).astype(np.float32)
    result = compare(states, [logits], TARGETS)
    own, exact = (
        float(torch.nn.functional.cross_entropy(torch.tensor(values).double(), torch.tensor(TARGETS)))
        for values in (logits, states.logits(0, 70))
    )
    assert result.perplexity == pytest.approx(np.exp(own), rel=1e-5)
    assert result.perplexity_change == pytest.approx(np.exp(own - exact) - 1, rel=1e-4)
    assert compare(states, [states.logits(0, 70)], TARGETS).perplexity_change == 0


def test_comparison_does_not_depend_on_chunks() -> None:
    states = hidden_states(positions=70)
    logits = states.logits(0, 70) + RANDOM.normal(scale=0.5, size=(70, 50)).astype(np.float32)
    whole = compare(states, [logits], TARGETS)
    pieces = compare(states, [logits[:1], logits[1:40], logits[40:]], TARGETS)
    assert pieces.kl_nats == pytest.approx(whole.kl_nats, rel=1e-5)  # summed in another order
    assert pieces.top1_agreement == whole.top1_agreement
    assert pieces.max_logit_error == pytest.approx(whole.max_logit_error, rel=1e-5)


def test_comparison_refuses_another_vocabulary() -> None:
    states = hidden_states(positions=2)
    with pytest.raises(ValueError, match="shape"):
        compare(states, [np.zeros((2, 49), dtype=np.float32)], [0, 0])


def test_hidden_states_are_read_without_torch(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    states = hidden_states(positions=3)
    save_file({"hidden": states.hidden, "unembedding": states.unembedding}, tmp_path / "a.safetensors")
    read = load_hidden_states(tmp_path / "a.safetensors")
    np.testing.assert_array_equal(read.logits(1, 3), states.logits(1, 3))


def hidden_states(*, positions: int) -> HiddenStates:
    return HiddenStates(
        hidden=RANDOM.normal(size=(positions, 8)).astype(np.float32),
        unembedding=RANDOM.normal(size=(50, 8)).astype(np.float32),
    )
