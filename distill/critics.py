"""Critics of the moment-matching game that are learned: one module a side, ascending beside the student.

A critic is  f(s, a) = g(u(s, a)) / critic_penalty,  clipped where a bound is set, with g = tanh unless the penalty's
mixture is skewed (`objective.bounded`) and a potential  u = matrix_a . project(hidden states at s)  (Jia 2024, arXiv
2406.02959, section 3; the forms are this project's own). `linear` learns the matrix [V, K] itself; `lowrank` and `mlp`
keep the teacher's unembedding there and learn what is projected onto it. It ascends

    E_s [ sum_a (P - Q) f - critic_penalty sum_a m f^2 ]    m = a P + (1 - a) Q

whose supremum over all functions is the closed form of `objective.py`, so the share of that value which a critic
holds is known at every step. Policies are fixed meanwhile. Legend: N states, V vocabulary, K projected width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from ammd.errors import DistillError

from . import critic_settings as settings
from .objective import Weights, bounded
from .shared_vocabulary import SharedVocabulary


@dataclass(frozen=True, slots=True, kw_only=True)
class Potential:
    """A learned critic at N states before it is bounded: `projected @ matrix`, and what it starts from."""

    projected: torch.Tensor  # [N, K] in the dtype of matrix products, detached
    matrix: torch.Tensor  # [V, K] likewise
    adds_log_ratio: bool = False  # half of log(P/Q) is added
    adds_partition: bool = False  # half of log Z_Q - log Z_P is added, both policies' log-partition functions

    def values(
        self,
        product: torch.Tensor,
        *,
        teacher: tuple[torch.Tensor, torch.Tensor],
        student: tuple[torch.Tensor, torch.Tensor],
        weights: Weights,
    ) -> torch.Tensor:
        """Return the critic at some rows, float32 [C, V].

        Args:
            product: Rows of `projected @ matrix.T`. Float32 [C, V]; is changed.
            teacher: Its logits and log-probabilities at these rows, [C, V] each.
            student: Likewise.
            weights: Hold penalty and bound.
        """
        if self.adds_log_ratio:
            product.add_(teacher[1], alpha=0.5).sub_(student[1], alpha=0.5)
        if self.adds_partition:
            partitions = [
                (logits[:, :1] - logprobs[:, :1]).float() for logits, logprobs in (student, teacher)
            ]
            product.add_(partitions[0] - partitions[1], alpha=0.5)
        return bounded(product, weights)


@dataclass(frozen=True, slots=True, kw_only=True)
class Views:
    """Both policies at N states, without gradient."""

    student_hiddens: torch.Tensor  # [N, H]
    student_head: torch.Tensor  # [V, H]
    teacher_hiddens: torch.Tensor  # [N, H_teacher]
    teacher_head: torch.Tensor  # [V, H_teacher]
    vocabulary: SharedVocabulary | None = (
        None  # where the policies have two; their outcomes then are the V of a critic
    )

    @property
    def outcome_rows(self) -> torch.Tensor:
        """The teacher's unembedding of all that a critic has a value for. [V, H_teacher]."""
        if self.vocabulary is None:
            return self.teacher_head
        return self.vocabulary.teacher_rows(self.teacher_head)

    def compared(
        self, teacher_logits: torch.Tensor, student_logits: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return both sides' float32 log-probabilities of the same V, at some rows."""
        logprobs = teacher_logits.float().log_softmax(-1), student_logits.float().log_softmax(-1)
        return logprobs if self.vocabulary is None else self.vocabulary.compared(*logprobs)

    def __len__(self) -> int:
        """Return N."""
        return len(self.student_hiddens)

    def rows(self, rows: torch.Tensor) -> Views:
        """Return the states at `rows`."""
        return replace(
            self,
            student_hiddens=self.student_hiddens[rows],
            teacher_hiddens=self.teacher_hiddens[rows],
        )


class CriticHead(nn.Module):
    """The trained part of a critic. Parameters are float32; products run in the dtype of the hidden states."""

    def __init__(self, wanted: settings.LearnedCritic, views: Views) -> None:
        """Take the settings and policies of the widths and heads that it will see.

        Raises:
            DistillError: It should start from the difference of logits and the policies' widths differ.
        """
        super().__init__()
        self._wanted = wanted
        student_width, teacher_width = views.student_head.shape[1], views.teacher_head.shape[1]
        widths = {"student": student_width, "teacher": teacher_width, "both": student_width + teacher_width}
        width = widths[wanted.inputs]
        is_difference = wanted.start == "difference"
        self.matrix: torch.Tensor = views.outcome_rows.detach()
        self.into: nn.Module = nn.Identity()
        self.hidden: nn.Sequential | None = None
        if isinstance(wanted, settings.LinearCritic):
            start = torch.zeros(len(self.matrix), width)
            if is_difference:
                start = torch.cat([-views.student_head, views.teacher_head], dim=1).float().mul_(0.5)
            self.matrix = nn.Parameter(start)
            return
        if isinstance(wanted, settings.LowRankCritic) and wanted.rank is not None:
            self.into = nn.Linear(width, wanted.rank)
            self.matrix = nn.Parameter(torch.zeros(len(self.matrix), wanted.rank))
            return
        into = _zeros(width, teacher_width)
        self.into = into
        if isinstance(wanted, settings.MlpCritic):
            layers = nn.Linear(width, wanted.hidden), nn.GELU(), _zeros(wanted.hidden, teacher_width)
            self.hidden = nn.Sequential(*layers)
        if is_difference:
            if student_width != teacher_width:
                raise DistillError(
                    f"the critic cannot start at the difference of logits: the student's states have "
                    f"{student_width} numbers, the teacher's {teacher_width}",
                    hint='set `critic.start = "log_ratio"`, or `critic.kind = "linear"`',
                )
            eye = 0.5 * torch.eye(teacher_width)
            into.weight.data = torch.cat([-eye, eye], dim=1)

    def potential(self, views: Views) -> Potential:
        """Return the critic's potential at these states, with gradient where it is enabled."""
        parts = {
            "student": (views.student_hiddens,),
            "teacher": (views.teacher_hiddens,),
            "both": (views.student_hiddens, views.teacher_hiddens),
        }[self._wanted.inputs]
        inputs = torch.cat([part.float() for part in parts], dim=1)
        projected = self.into(inputs)
        if self.hidden is not None:
            projected = projected + self.hidden(inputs)
        dtype = views.student_hiddens.dtype
        return Potential(
            projected=projected.to(dtype),
            matrix=self.matrix.to(dtype),
            adds_log_ratio=self._wanted.start == "log_ratio",
            adds_partition=self._wanted.start == "difference",
        )


def _zeros(width_in: int, width_out: int) -> nn.Linear:
    layer = nn.Linear(width_in, width_out)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
