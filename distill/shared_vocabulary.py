"""One set of outcomes for two vocabularies: the tokens that both have, and a remainder.

Tokens are the same where their bytes are; the end tokens of one side are those of the other. A token that only one
side has counts for the longest token of both that its text begins with: `theory` of a teacher whose student spells
`the|ory` counts for `the`, which is what such a student has to say next. Left for the remainder are special tokens,
rows of the head without a token, and text that begins with nothing both have.

Both distributions are summed up over these outcomes. A gradient by the outcomes' logits reaches the student's logits
through that sum: each token has it by its share of its outcome. Where everything is shared nothing is changed, to the
bit. Legend: V tokens of a model, K outcomes but the remainder, C states.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import torch

from .token_bytes import TokenBytes

# Least log-probability of a remainder: what the student puts where the teacher has no token costs much, and no more.
_LEAST_LOGPROB = -20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcomes:
    """How the tokens of one model add up to outcomes. The remainder is the last, numbered K."""

    of: torch.Tensor  # int64 [V]  the outcome of each row of the head
    first: torch.Tensor  # int64 [K]  a token of each outcome
    more: torch.Tensor  # int64 [M]  all other tokens
    is_own: torch.Tensor  # bool [V]  the other side has this token, too

    def summed(self, logprobs: torch.Tensor) -> torch.Tensor:
        """Return log-probabilities of all outcomes, [C, K + 1], from those of tokens, [C, V]."""
        left = logprobs.new_full((len(logprobs), 1), -torch.inf)
        outcomes = torch.cat([logprobs.index_select(1, self.first), left], dim=1)
        if len(self.more):
            mass = torch.zeros_like(outcomes)
            mass.index_add_(1, self.of[self.more], logprobs.index_select(1, self.more).exp_())
            outcomes = torch.logaddexp(outcomes, mass.log_())
        outcomes[:, -1].clamp_(min=_LEAST_LOGPROB)
        return outcomes

    def to(self, device: torch.device) -> Outcomes:
        """Return the same on `device`."""
        return Outcomes(
            of=self.of.to(device),
            first=self.first.to(device),
            more=self.more.to(device),
            is_own=self.is_own.to(device),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedVocabulary:
    """The outcomes of a teacher and a student."""

    teacher: Outcomes
    student: Outcomes
    has_remainder: bool  # the student has tokens there; else both are taken given that it is something shared

    def compared(
        self, teacher_logprobs: torch.Tensor, student_logprobs: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return both sides' log-probabilities of outcomes, [C, outcomes], from those of tokens, float32 [C, V]."""
        teacher, student = self.teacher.summed(teacher_logprobs), self.student.summed(student_logprobs)
        if not self.has_remainder:
            whole = teacher[:, :-1]
            lost = whole.logsumexp(-1, keepdim=True) if len(self.teacher.more) else 0.0
            teacher, student = whole - lost, student[:, :-1]
        return teacher, student

    def spread(
        self, gradient: torch.Tensor, student_logprobs: torch.Tensor, outcomes: torch.Tensor
    ) -> torch.Tensor:
        """Return the gradient by the student's logits, [C, V].

        Args:
            gradient: By the logits of outcomes. [C, outcomes].
            student_logprobs: Of tokens. [C, V].
            outcomes: The student's log-probabilities of outcomes. [C, outcomes].
        """
        share = student_logprobs.sub(outcomes.index_select(1, self.student.of)).exp_()
        return share.mul_(gradient.index_select(1, self.student.of))

    def teacher_rows(self, head: torch.Tensor) -> torch.Tensor:
        """Return a row of the teacher's unembedding for each outcome; the mean of its rows for the remainder."""
        rows = head[self.teacher.first]
        if not self.has_remainder:
            return rows
        rest = head[self.teacher.of == len(self.teacher.first)]
        mean = rest.float().mean(0, keepdim=True) if len(rest) else head.new_zeros(1, head.shape[1])
        return torch.cat([rows, mean.to(head.dtype)])

    def to(self, device: torch.device) -> SharedVocabulary:
        """Return the same on `device`."""
        return replace(self, teacher=self.teacher.to(device), student=self.student.to(device))


def share_vocabulary(
    teacher: TokenBytes,
    student: TokenBytes,
    *,
    ends: tuple[Collection[int], Collection[int]],
    rows: tuple[int, int],
) -> SharedVocabulary:
    """Find the outcomes.

    Args:
        teacher: Bytes of its tokens.
        student: Likewise.
        ends: End tokens of teacher and student.
        rows: Of their heads.
    """
    ids = [
        _by_bytes(side, end, rows=count)
        for side, end, count in zip((teacher, student), ends, rows, strict=True)
    ]
    both = sorted(ids[0].keys() & ids[1].keys(), key=lambda text: ids[0][text][0])
    numbers = {text: number for number, text in enumerate(both)}
    sides = [
        _outcomes(side, numbers, end=len(both), ends=end, rows=count)
        for side, end, count in zip(ids, ends, rows, strict=True)
    ]
    remainder = len(both) + 1
    return SharedVocabulary(
        teacher=sides[0], student=sides[1], has_remainder=bool((sides[1].of == remainder).any())
    )


def _by_bytes(side: TokenBytes, ends: Collection[int], *, rows: int) -> dict[bytes, list[int]]:
    """Return the tokens of each text, in their order: a byte may also be a token of its own."""
    found: dict[bytes, list[int]] = {}
    for token_id in sorted(side.of.keys() & set(range(rows)) - set(ends)):
        found.setdefault(side.of[token_id], []).append(token_id)
    return found


def _outcomes(
    ids: Mapping[bytes, list[int]],
    numbers: Mapping[bytes, int],
    *,
    end: int,
    ends: Collection[int],
    rows: int,
) -> Outcomes:
    """Return one side's outcomes, given the numbers of shared texts and that of the end."""
    of = torch.full((rows,), end + 1)
    is_own = torch.zeros(rows, dtype=torch.bool)
    first = [0] * (end + 1)
    for text, same in ids.items():
        number = _longest_beginning(text, numbers)
        for token_id in same:
            if number is not None:
                of[token_id] = number
        if text in numbers:
            first[numbers[text]] = same[0]
            is_own[same] = True
    of[sorted(ends)] = end
    is_own[sorted(ends)] = True
    first[end] = min(ends)
    firsts = torch.tensor(first)
    others = torch.ones(rows, dtype=torch.bool)
    others[firsts] = False
    return Outcomes(of=of, first=firsts, more=others.nonzero().squeeze(1), is_own=is_own)


def _longest_beginning(text: bytes, numbers: Mapping[bytes, int]) -> int | None:
    beginnings = (text[:length] for length in range(len(text), 0, -1))
    return next((numbers[one] for one in beginnings if one in numbers), None)
