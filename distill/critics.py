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

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import nn

from ammd.errors import DistillError

from . import critic_settings as settings
from .fleet import Fleet
from .objective import Weights, bounded
from .snapshots import State, optimizer_state, restore_optimizer

_PROBE_TOKENS = 64  # states on which the change of a critic by one ascent step is measured
_SCALINGS = 8  # of a step that changes too much: one is enough where the critic is not bent by its bound
_CHANGE_SLACK = 1.05
_SATURATED = 0.99  # of the bound
_BLOCK_BYTES = 3 << 20  # of one float32 tensor of a block of rows: several fit in the last-level cache


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
        self.matrix: torch.Tensor = views.teacher_head.detach()
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


class Adversary:
    """A critic with its optimizer: the side of the game that ascends."""

    def __init__(self, wanted: settings.LearnedCritic, views: Views, *, seed: int, fleet: Fleet) -> None:
        """Take the settings, the policies of a first batch, a seed for drawing states, and who ascends along.

        Raises:
            DistillError: The critic cannot start as the settings want for these policies.
        """
        self._wanted, self._fleet = wanted, fleet
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self._head = CriticHead(wanted, views)
        self._optimizer = torch.optim.AdamW(
            self._head.parameters(), lr=wanted.lr, betas=(0.5, 0.98), weight_decay=wanted.weight_decay
        )
        self._generator = torch.Generator().manual_seed(seed)
        self.rms = 0.0  # before the last ascent, under both policies, as a share of the bound
        self.saturation = 0.0  # share of both policies' mass where it is at 99 % of its bound

    @torch.no_grad()
    def potential(self, views: Views) -> Potential:
        """Return what `matching_loss` takes."""
        return self._head.potential(views)

    def state(self) -> State:
        """Return parameters, optimizer and generator."""
        whole = State(
            tensors={"generator": self._generator.get_state()},
            facts={"rms": self.rms, "saturation": self.saturation},
        )
        whole.put("head", State(tensors=dict(self._head.named_parameters())))
        whole.put("optimizer", optimizer_state(self._optimizer))
        return whole

    @torch.no_grad()
    def restore(self, state: State) -> None:
        """Take over what `state` returned."""
        kept = state.part("head").tensors
        for name, parameter in self._head.named_parameters():
            parameter.copy_(kept[name])
        restore_optimizer(self._optimizer, state.part("optimizer"))
        self._generator.set_state(state.tensors["generator"])
        self.rms, self.saturation = state.facts["rms"], state.facts["saturation"]

    def ascend(self, views: Views, weights: Weights) -> None:
        """Take the ascent steps that precede one step of the student."""
        for _ in range(self._wanted.ascents):
            tokens = -(-self._wanted.ascent_tokens // self._fleet.size)  # on each process
            chosen = torch.randperm(len(views), generator=self._generator)[:tokens]
            self._step(views.rows(chosen), weights)

    def _step(self, views: Views, weights: Weights) -> None:
        probe = views.rows(torch.arange(min(len(views), _PROBE_TOKENS)))
        before = [parameter.detach().clone() for parameter in self._head.parameters()]
        potential = self._head.potential(views)
        gradients = ascent_gradients(potential, views, weights)
        old = list(_blocks(self.potential(probe), probe, weights))
        self._measure(old, weights)
        self._optimizer.zero_grad()
        torch.autograd.backward(
            [tensor for tensor in (potential.projected, potential.matrix) if tensor.requires_grad],
            [
                -gradient
                for tensor, gradient in zip((potential.projected, potential.matrix), gradients, strict=True)
                if tensor.requires_grad
            ],
        )
        own = [parameter.grad for parameter in self._head.parameters() if parameter.grad is not None]
        self._fleet.add(own)
        for gradient in own:
            gradient.div_(self._fleet.size)
        self._optimizer.step()
        stepped = [parameter.detach().clone() for parameter in self._head.parameters()]
        share = 1.0
        for _ in range(_SCALINGS):
            (square,) = self._fleet.sums([_square_change(old, self.potential(probe), probe, weights)])
            change = math.sqrt(square / self._fleet.size)
            if change <= self._wanted.max_change * _CHANGE_SLACK:
                break
            share *= self._wanted.max_change / change
            with torch.no_grad():
                for parameter, start, end in zip(self._head.parameters(), before, stepped, strict=True):
                    parameter.copy_(torch.lerp(start, end, share))

    def _measure(self, blocks: list[_Block], weights: Weights) -> None:
        square = saturated = mass = 0.0
        for block in blocks:
            relative = block.values.div(weights.critic_limit).abs_()
            square += float((relative.square() * block.total).sum())
            saturated += float(block.total[relative > _SATURATED].sum())
            mass += float(block.total.sum())
        square, saturated, mass = self._fleet.sums([square, saturated, mass])
        self.rms, self.saturation = math.sqrt(square / mass), saturated / mass


@torch.no_grad()
def ascent_gradients(
    potential: Potential, views: Views, weights: Weights
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of the game's mean value by `projected` [N, K] and by `matrix` [V, K].

    With F = 2 penalty f:  df/du = (1 + (1 - a) F) (1 - a F) / penalty, and 0 where f is clipped;
    d value / df = (P - Q) - 2 penalty m f.
    """
    penalty, share = weights.critic_penalty, weights.critic_mixture
    grad_projected = torch.empty_like(potential.projected)
    grad_matrix = torch.zeros_like(potential.matrix, dtype=torch.float32)
    for rows, block in zip(
        _row_blocks(len(views), len(potential.matrix)), _blocks(potential, views, weights), strict=True
    ):
        difference, scaled = block.teacher_probs - block.student_probs, block.values * (2 * penalty)
        mixture = torch.add(block.student_probs, difference, alpha=share)
        slope = difference.sub_(mixture.mul_(scaled))
        slope.mul_(scaled.mul(1 - share).add_(1)).mul_(scaled.mul_(-share).add_(1)).div_(penalty)
        if weights.critic_bound is not None:
            slope.masked_fill_(block.values.abs() >= weights.critic_bound, 0)
        slope = slope.div_(len(views)).to(potential.matrix.dtype)
        grad_projected[rows] = slope @ potential.matrix
        if potential.matrix.requires_grad:
            grad_matrix += slope.T @ potential.projected[rows]
    return grad_projected, grad_matrix.to(potential.matrix.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Block:
    values: torch.Tensor  # float32 [C, V]  the critic
    teacher_probs: torch.Tensor  # float32 [C, V]
    student_probs: torch.Tensor  # float32 [C, V]

    @property
    def total(self) -> torch.Tensor:
        """P + Q."""
        return self.teacher_probs + self.student_probs


def _row_blocks(count: int, vocabulary: int) -> Iterator[slice]:
    rows = max(1, _BLOCK_BYTES // (4 * vocabulary))
    for start in range(0, count, rows):
        yield slice(start, min(start + rows, count))


@torch.no_grad()
def _blocks(potential: Potential, views: Views, weights: Weights) -> Iterator[_Block]:
    student = views.student_hiddens @ views.student_head.to(views.student_hiddens.dtype).T
    teacher = views.teacher_hiddens @ views.teacher_head.T
    products = potential.projected @ potential.matrix.T
    for rows in _row_blocks(len(views), len(potential.matrix)):
        student_logprobs = student[rows].float().log_softmax(-1)
        teacher_logprobs = teacher[rows].float().log_softmax(-1)
        values = potential.values(
            products[rows].float(),
            teacher=(teacher[rows], teacher_logprobs),
            student=(student[rows], student_logprobs),
            weights=weights,
        )
        yield _Block(
            values=values, teacher_probs=teacher_logprobs.exp_(), student_probs=student_logprobs.exp_()
        )


def _square_change(old: list[_Block], new: Potential, views: Views, weights: Weights) -> float:
    """Return the mean square change under m, as a share of the critic's squared bound."""
    square = 0.0
    for before, after in zip(old, _blocks(new, views, weights), strict=True):
        change = after.values.sub_(before.values).div_(weights.critic_limit).square_()
        square += float(change.mul_(before.total).sum()) / 2
    return square / len(views)
