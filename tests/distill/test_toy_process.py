"""The performance-difference lemma on an enumerated process: what the moment gap is the bound of.

With the true action values in the critic's place, the gap of `state_terms`, summed along all sequences, is the whole
difference in return between teacher and student: exactly, in float64, for any policies and any reward.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch

from ammd.distill.objective import Weights, state_terms

VOCABULARY, HORIZON = 3, 3
PREFIXES = [p for length in range(HORIZON) for p in itertools.product(range(VOCABULARY), repeat=length)]
ROW = {prefix: row for row, prefix in enumerate(PREFIXES)}


def random_tables(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return both policies and the reward, float64 [prefixes, VOCABULARY]."""
    generator = torch.Generator().manual_seed(seed)
    tables = [
        2 * torch.randn(len(PREFIXES), VOCABULARY, generator=generator, dtype=torch.float64) for _ in range(3)
    ]
    return tables[0].softmax(-1), tables[1].softmax(-1), tables[2]


def expectation(
    policy: torch.Tensor, discount: float, value: Callable[[tuple[int, ...], int], torch.Tensor]
) -> torch.Tensor:
    """Return the mean of  sum_t discount^t value(s_t, y_t)  over all sequences of `policy`."""
    total = torch.zeros((), dtype=torch.float64)
    for sequence in itertools.product(range(VOCABULARY), repeat=HORIZON):
        steps = [(sequence[:t], sequence[t]) for t in range(HORIZON)]
        probability = torch.stack([policy[ROW[state], token] for state, token in steps]).prod()
        total += probability * sum(
            discount**t * value(state, token) for t, (state, token) in enumerate(steps)
        )
    return total


def action_values(policy: torch.Tensor, reward: torch.Tensor, discount: float) -> torch.Tensor:
    """Return Q of a policy by going backwards. [prefixes, VOCABULARY]."""
    values = reward.clone()
    for prefix in reversed(PREFIXES):
        if len(prefix) == HORIZON - 1:
            continue
        for token in range(VOCABULARY):
            following = ROW[(*prefix, token)]
            values[ROW[prefix], token] += discount * (policy[following] * values[following]).sum()
    return values


def gaps(teacher: torch.Tensor, student: torch.Tensor, critic: torch.Tensor) -> torch.Tensor:
    """Return the product's own moment gap at every state."""
    return state_terms(
        teacher.log(),
        student.log(),
        taken=torch.zeros(len(PREFIXES), dtype=torch.long),
        weights=Weights(game=1.0),
        critic=critic,
    ).gap


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("discount", [0.0, 0.5, 1.0])
def test_both_forms_of_the_lemma_hold(seed: int, discount: float) -> None:
    teacher, student, reward = random_tables(seed)
    returns = [expectation(policy, discount, lambda s, y: reward[ROW[s], y]) for policy in (teacher, student)]
    off = gaps(teacher, student, action_values(student, reward, discount))
    on = gaps(teacher, student, action_values(teacher, reward, discount))
    for policy, found in ((teacher, off), (student, on)):
        distance = expectation(policy, discount, lambda s, _y, found=found: found[ROW[s]])  # type: ignore[misc]
        torch.testing.assert_close(distance, returns[0] - returns[1], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("discount", [0.5, 1.0])
def test_distances_of_a_fixed_critic_are_their_sampled_definitions(discount: float) -> None:
    """Expectations over the vocabulary in place of the token that was taken change no mean."""
    teacher, student, critic = random_tables(7)
    own = [(policy * critic).sum(-1) for policy in (teacher, student)]
    off = expectation(teacher, discount, lambda s, y: critic[ROW[s], y] - own[1][ROW[s]])
    on = expectation(student, discount, lambda s, y: own[0][ROW[s]] - critic[ROW[s], y])
    found = gaps(teacher, student, critic)
    for policy, definition in ((teacher, off), (student, on)):
        exact = expectation(policy, discount, lambda s, _y: found[ROW[s]])
        torch.testing.assert_close(exact, definition, rtol=1e-10, atol=1e-10)


def test_distances_are_bounded_by_total_variation_along_the_way() -> None:
    teacher, student, _ = random_tables(3)
    bound = 0.7
    best = bound * (teacher - student).sign()
    variation = 0.5 * (teacher - student).abs().sum(-1)
    for policy in (teacher, student):
        attained = expectation(policy, 0.5, lambda s, _y: gaps(teacher, student, best)[ROW[s]])
        most = expectation(policy, 0.5, lambda s, _y: 2 * bound * variation[ROW[s]])
        torch.testing.assert_close(attained, most, rtol=1e-12, atol=1e-12)
