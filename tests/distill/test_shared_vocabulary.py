"""Outcomes of two vocabularies: by hand on a toy, against automatic differentiation, and where they are one."""

from __future__ import annotations

import pytest
import torch

from ammd.distill.shared_vocabulary import SharedVocabulary, share_vocabulary
from ammd.distill.token_bytes import TokenBytes

TEACHER = [b"a", b"b", b"ab", b"ba", b"c", None]  # the last is the end token
STUDENT = [b"bb", b"b", None, b"a", b"aa", b"d", b"b"]
# The outcomes are a, b, the end and the remainder. `ab` counts for a, `ba` and `bb` for b; c and d for nothing.
BY_HAND = ([[0, 2], [1, 3], [5], [4]], [[3, 4], [0, 1, 6], [2], [5]])


def bytes_of(tokens: list[bytes | None]) -> TokenBytes:
    return TokenBytes(of={at: one for at, one in enumerate(tokens) if one is not None}, adds_space=False)


def toy(teacher: list[bytes | None] = TEACHER, student: list[bytes | None] = STUDENT) -> SharedVocabulary:
    ends = ({teacher.index(None)}, {student.index(None)})
    return share_vocabulary(
        bytes_of(teacher), bytes_of(student), ends=ends, rows=(len(teacher), len(student))
    )


def logprobs(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).mul(3).log_softmax(-1)


def test_distributions_are_summed_as_by_hand() -> None:
    both = logprobs(5, len(TEACHER), seed=0), logprobs(5, len(STUDENT), seed=1)
    found = toy().compared(*both)
    for side, given, members in zip(found, both, BY_HAND, strict=True):
        probs = given.double().exp()
        expected = torch.stack([probs[:, tokens].sum(1) for tokens in members], dim=1)
        torch.testing.assert_close(side.double().exp(), expected, rtol=1e-6, atol=0)
    kl = (found[0].exp() * (found[0] - found[1])).sum(1)
    p, q = (
        torch.stack([given.double().exp()[:, tokens].sum(1) for tokens in members], dim=1)
        for given, members in zip(both, BY_HAND, strict=True)
    )
    torch.testing.assert_close(kl.double(), (p * (p / q).log()).sum(1), rtol=1e-5, atol=1e-7)


def test_a_gradient_reaches_the_tokens_by_their_shares() -> None:
    vocabulary = toy()
    logits = torch.randn(4, len(STUDENT), generator=torch.Generator().manual_seed(2), requires_grad=True)
    own = logits.log_softmax(-1)
    outcomes = torch.stack([own[:, tokens].logsumexp(1) for tokens in BY_HAND[1]], dim=1)
    target = logprobs(4, 4, seed=3)
    loss = (target.exp() * (target - outcomes)).sum()
    (expected,) = torch.autograd.grad(loss, logits)
    with torch.no_grad():
        found = vocabulary.compared(logprobs(4, len(TEACHER), seed=4), own)[1]
        by_outcome = found.exp() - target.exp()
        torch.testing.assert_close(vocabulary.spread(by_outcome, own, found), expected)


def test_one_vocabulary_is_left_as_it_is_to_the_bit() -> None:
    tokens = [b"x", b"y", None, b"xy"]
    both = logprobs(3, 4, seed=5), logprobs(3, 4, seed=6)
    vocabulary = toy(tokens, tokens)
    order = [0, 1, 3, 2]  # the end is the last outcome
    for found, given in zip(vocabulary.compared(*both), both, strict=True):
        assert torch.equal(found, given[:, order])
    gradient = torch.randn(3, 4)
    assert torch.equal(vocabulary.spread(gradient[:, order], both[1], both[1][:, order]), gradient)


def test_what_only_the_teacher_can_say_is_left_out_where_the_student_has_no_remainder() -> None:
    vocabulary = toy([b"a", b"c", None], [None, b"a", b"ab"])
    teacher, student = vocabulary.compared(torch.tensor([[0.2, 0.6, 0.2]]).log(), logprobs(1, 3, seed=7))
    torch.testing.assert_close(teacher.exp(), torch.tensor([[0.5, 0.5]]))
    torch.testing.assert_close(student.exp().sum(1), torch.ones(1))


def test_what_only_the_student_can_say_costs_it_a_finite_amount() -> None:
    vocabulary = toy([b"a", None], [None, b"a", b"x"])
    teacher, student = vocabulary.compared(logprobs(1, 2, seed=8), logprobs(1, 3, seed=9))
    reverse = (student.exp() * (student - teacher)).sum()
    assert 0 < float(reverse) < float("inf")
    assert teacher.exp()[0, -1] < 1e-8


@pytest.mark.parametrize("size", [1, 2])
def test_rows_of_a_critic_are_the_teachers(size: int) -> None:
    head = torch.randn(len(TEACHER), size)
    rows = toy().teacher_rows(head)
    torch.testing.assert_close(rows, head[[0, 1, 5, 4]])
