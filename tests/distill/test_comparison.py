"""The chunked loss over two vocabularies: equal to the plain one where they are one, else to dense differentiation."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch

from ammd.distill import divergences as d
from ammd.distill.adversary import Adversary
from ammd.distill.chunked import States, Sums, matching_loss
from ammd.distill.comparison import Comparison
from ammd.distill.critic_settings import LowRankCritic
from ammd.distill.critics import Views
from ammd.distill.fleet import Fleet
from ammd.distill.objective import Weights
from ammd.distill.score import Score
from ammd.distill.shared_vocabulary import SharedVocabulary, share_vocabulary
from ammd.distill.token_bytes import TokenBytes

TOKENS = [bytes([letter]) for letter in b"abcdefgh"]
# The teacher has ten more rows in which `a` and `b` begin, the student three with `c` and one that nothing begins.
TEACHER = [*TOKENS, None, *(b"a" + one for one in TOKENS), b"bx", b"by"]
STUDENT = [None, *reversed(TOKENS), b"cc", b"cd", b"ccd", b"?"]
ROWS = 12


def share(teacher: list[bytes | None], student: list[bytes | None]) -> SharedVocabulary:
    sides = [
        TokenBytes(of={at: one for at, one in enumerate(tokens) if one is not None}, adds_space=False)
        for tokens in (teacher, student)
    ]
    ends = ({teacher.index(None)}, {student.index(None)})
    return share_vocabulary(*sides, ends=ends, rows=(len(teacher), len(student)))


def problem(
    teacher: list[bytes | None], student: list[bytes | None], comparison: Comparison | None
) -> tuple[torch.Tensor, torch.Tensor, States]:
    generator = torch.Generator().manual_seed(4)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    last = torch.zeros(ROWS, dtype=torch.bool)
    last[[4, ROWS - 1]] = True
    states = States(
        teacher_hiddens=normal(ROWS, 5),
        teacher_head=normal(len(teacher), 5),
        targets=torch.randint(0, len(student), (ROWS,), generator=generator),
        last_in_row=last,
        comparison=comparison,
    )
    return normal(ROWS, 6).requires_grad_(), normal(len(student), 6).requires_grad_(), states


OBJECTIVES = {
    "forward_kl": Weights(kl=1.0),
    "reverse_kl": Weights(divergence=d.ReverseKL()),
    "gjsd": Weights(divergence=d.GeneralisedJSD(0.3)),
    "tv": Weights(divergence=d.TotalVariation()),
    "skew_kl": Weights(divergence=d.SkewKL(0.1)),
    "skew_rkl": Weights(divergence=d.SkewReverseKL(0.1)),
    "ammd": Weights(game=1.3, kl=0.2, critic_mixture=0.3),
    "sft": Weights(cross_entropy=1.0),
}


@pytest.mark.parametrize(
    ("name", "spells"),
    [(name, spells) for name in OBJECTIVES for spells in (False, True) if spells or name != "sft"],
)
def test_one_vocabulary_and_every_state_aligned_is_the_plain_loss(name: str, spells: bool) -> None:
    tokens = [*TOKENS, None]
    comparison = Comparison(
        vocabulary=share(tokens, tokens), aligned=torch.ones(ROWS, dtype=torch.bool), spells=spells
    )
    score = Score(discount=0.7, baseline=0.1, own_texts=not spells)
    found = []
    for one in (None, comparison):
        hiddens, head, states = problem(tokens, tokens, one)
        loss, sums = matching_loss(
            hiddens, head, states=states, weights=OBJECTIVES[name], score=score, chunk_tokens=5
        )
        found.append((loss, *torch.autograd.grad(loss, (hiddens, head)), asdict(sums)))
    *expected, expected_sums = found[0]
    *others, other_sums = found[1]
    for one, other in zip(expected, others, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-6)
    assert other_sums == pytest.approx(expected_sums, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("chunk_tokens", [3, 64])
def test_two_vocabularies_equal_dense_differentiation(name: str, chunk_tokens: int) -> None:
    """Gradients by torch through the sums over outcomes, in float64."""
    aligned = torch.tensor([True, False, True, True, False, True] * 2)
    vocabulary = share(TEACHER, STUDENT)
    assert vocabulary.has_remainder
    weights = OBJECTIVES[name]
    hiddens, head, states = problem(
        TEACHER, STUDENT, Comparison(vocabulary=vocabulary, aligned=aligned, spells=True)
    )
    found, sums = matching_loss(
        hiddens, head, states=states, weights=weights, score=Score(), chunk_tokens=chunk_tokens
    )
    teacher = (states.teacher_hiddens @ states.teacher_head.T).double().softmax(-1)
    logits = hiddens.double() @ head.double().T
    tokens = logits.log_softmax(-1)
    taken = tokens.gather(1, states.targets[:, None])[:, 0]
    if name == "sft":
        expected = -taken.mean()
    else:
        count = len(vocabulary.teacher.first) + 1
        p = torch.zeros(ROWS, count, dtype=torch.float64).index_add(1, vocabulary.teacher.of, teacher)
        p[:, -1].clamp_(min=float(torch.tensor(-20.0).exp()))
        q = torch.zeros(ROWS, count, dtype=torch.float64).index_add(1, vocabulary.student.of, tokens.exp())
        shared = q.gather(1, vocabulary.student.of[states.targets][:, None])[:, 0].log()
        spelling = torch.where(aligned, shared - taken, -taken)
        expected = (torch.where(aligned, distance(name, p, q), 0.0) + spelling).mean()
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)
    for mine, theirs in zip(
        torch.autograd.grad(found, (hiddens, head)),
        torch.autograd.grad(expected, (hiddens, head)),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    assert sums.compared_share == pytest.approx(8 / 12)


def distance(name: str, p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    def kl(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return (one * (one / other).log()).sum(1)

    match name:
        case "forward_kl":
            return kl(p, q)
        case "reverse_kl":
            return kl(q, p)
        case "gjsd":
            m = 0.3 * p + 0.7 * q
            return 0.3 * kl(p, m) + 0.7 * kl(q, m)
        case "tv":
            return (p - q).abs().sum(1) / 2
        case "skew_kl":
            return kl(p, 0.1 * p + 0.9 * q)
        case "skew_rkl":
            return kl(q, 0.9 * p + 0.1 * q)
    critic = ((p - q) / (2 * (0.3 * p + 0.7 * q))).detach()
    return 1.3 * ((p - q) * critic).sum(1) + 0.2 * kl(p, q)


def test_other_states_of_the_students_own_texts_only_answer_for_what_follows() -> None:
    aligned = torch.tensor([True, False, False, True, False, True, False, False, False, False, False, False])
    comparison = Comparison(vocabulary=share(TEACHER, STUDENT), aligned=aligned, spells=False)

    def gradient(discount: float) -> torch.Tensor:
        hiddens, head, states = problem(TEACHER, STUDENT, comparison)
        loss, _ = matching_loss(
            hiddens,
            head,
            states=states,
            weights=Weights(game=1.0),
            score=Score(discount=discount),
            chunk_tokens=4,
        )
        return torch.autograd.grad(loss, hiddens)[0].abs().sum(1)

    assert torch.equal(gradient(0.0) > 0, aligned)
    follows = torch.tensor([True] * 3 + [True, False] + [True] + [False] * 6)
    assert torch.equal(gradient(0.9) > 0, follows)


def test_a_learned_critic_from_the_log_ratio_is_the_closed_form_over_outcomes() -> None:
    vocabulary = share(TEACHER, STUDENT)
    comparison = Comparison(vocabulary=vocabulary, aligned=torch.ones(ROWS, dtype=torch.bool), spells=False)
    hiddens, head, states = problem(TEACHER, STUDENT, comparison)
    views = Views(
        student_hiddens=hiddens.detach(),
        student_head=head.detach(),
        teacher_hiddens=states.teacher_hiddens,
        teacher_head=states.teacher_head,
        vocabulary=vocabulary,
    )
    weights = Weights(game=1.0)
    adversary = Adversary(LowRankCritic(start="log_ratio"), views, seed=0, fleet=Fleet())
    losses = {}
    for name, critic in (("closed", None), ("learned", adversary.potential(views))):
        losses[name], _ = matching_loss(
            hiddens, head, states=states, weights=weights, score=Score(), chunk_tokens=5, critic=critic
        )
    torch.testing.assert_close(losses["learned"], losses["closed"])
    adversary.ascend(views, weights)
    sums = Sums(tokens=ROWS)
    moved, _ = matching_loss(
        hiddens,
        head,
        states=states,
        weights=weights,
        score=Score(),
        chunk_tokens=5,
        critic=adversary.potential(views),
        sums=sums,
    )
    assert sums.critic_share <= 1 + 1e-6  # no critic exceeds the closed form
    assert float(moved.detach()) != float(losses["closed"].detach())
