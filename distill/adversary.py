"""The side of the game that ascends: a learned critic with its optimizer.

Each ascent step looks at some states of the batch. Both policies are computed there once; at the first of those states,
the probe, they are kept, and the step is scaled down until it changes the critic there by no more than is allowed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from . import critic_settings as settings
from .critics import CriticHead, Potential, Views
from .fleet import Fleet
from .objective import Weights
from .snapshots import State, optimizer_state, restore_optimizer

_PROBE_TOKENS = 64  # states on which the change of a critic by one ascent step is measured
_SCALINGS = 8  # of a step that changes too much: one is enough where the critic is not bent by its bound
_CHANGE_SLACK = 1.05
_SATURATED = 0.99  # of the bound
_BLOCK_BYTES = 3 << 20  # of one float32 tensor of a block of rows: several fit in a CPU's last-level cache


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
            self._head = CriticHead(wanted, views).to(views.student_head.device)
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
        before = [parameter.detach().clone() for parameter in self._head.parameters()]
        potential = self._head.potential(views)
        blocks = Blocks(potential, views, weights)
        gradients = ascent_gradients(potential, blocks, weights)
        self._measure(blocks.kept, weights)
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
            (square,) = self._fleet.sums([blocks.square_change(self._head, weights)])
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
    potential: Potential, blocks: Blocks, weights: Weights
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of the game's mean value by `projected` [N, K] and by `matrix` [V, K].

    With F = 2 penalty f:  df/du = (1 + (1 - a) F) (1 - a F) / penalty, and 0 where f is clipped;
    d value / df = (P - Q) - 2 penalty m f.
    """
    penalty, share = weights.critic_penalty, weights.critic_mixture
    grad_projected = torch.empty_like(potential.projected)
    grad_matrix = torch.zeros_like(potential.matrix, dtype=torch.float32)
    for rows, block in blocks:
        difference, scaled = block.teacher_probs - block.student_probs, block.values * (2 * penalty)
        mixture = torch.add(block.student_probs, difference, alpha=share)
        slope = difference.sub_(mixture.mul_(scaled))
        slope.mul_(scaled.mul(1 - share).add_(1)).mul_(scaled.mul_(-share).add_(1)).div_(penalty)
        if weights.critic_bound is not None:
            slope.masked_fill_(block.values.abs() >= weights.critic_bound, 0)
        slope = slope.div_(len(potential.projected)).to(potential.matrix.dtype)
        grad_projected[rows] = slope @ potential.matrix
        if potential.matrix.requires_grad:
            grad_matrix += slope.T @ potential.projected[rows]
    return grad_projected, grad_matrix.to(potential.matrix.dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Policies:
    """Both policies at a block of rows."""

    student: tuple[
        torch.Tensor, torch.Tensor
    ]  # logits, and float32 log-probabilities of what is compared, [C, V] each
    teacher: tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Block:
    values: torch.Tensor  # float32 [C, V]  the critic
    teacher_probs: torch.Tensor  # float32 [C, V]
    student_probs: torch.Tensor  # float32 [C, V]

    @property
    def total(self) -> torch.Tensor:
        """P + Q."""
        return self.teacher_probs + self.student_probs


class Blocks:
    """A critic and both policies at some states, block by block; the first are kept to see what a step changes."""

    def __init__(self, potential: Potential, views: Views, weights: Weights) -> None:
        self._potential, self._views, self._weights = potential, views, weights
        self._probe = views.rows(torch.arange(min(len(views), _PROBE_TOKENS)))
        self._policies: list[tuple[slice, _Policies]] = []  # at the probe's states
        self.kept: list[_Block] = []

    @torch.no_grad()
    def __iter__(self) -> Iterator[tuple[slice, _Block]]:
        """Yield the rows and what is there, keeping what belongs to the probe."""
        views = self._views
        student = views.student_hiddens @ views.student_head.to(views.student_hiddens.dtype).T
        teacher = views.teacher_hiddens @ views.teacher_head.T
        products = self._potential.projected @ self._potential.matrix.T
        for rows in _row_blocks(len(views), len(self._probe), self._potential.matrix):
            teachers, students = views.compared(teacher[rows], student[rows])
            policies = _Policies(student=(student[rows], students), teacher=(teacher[rows], teachers))
            block = _Block(
                values=_values(self._potential, products[rows], policies, self._weights),
                teacher_probs=policies.teacher[1].exp(),
                student_probs=policies.student[1].exp(),
            )
            if rows.stop <= len(self._probe):
                self._policies.append((rows, policies))
                self.kept.append(block)
            yield rows, block

    @torch.no_grad()
    def square_change(self, head: CriticHead, weights: Weights) -> float:
        """Return the mean square change of the critic under m at the probe, as a share of its squared bound."""
        new = head.potential(self._probe)
        products = new.projected @ new.matrix.T
        square = 0.0
        for before, (rows, policies) in zip(self.kept, self._policies, strict=True):
            values = _values(new, products[rows], policies, weights)
            change = values.sub_(before.values).div_(weights.critic_limit).square_()
            square += float(change.mul_(before.total).sum()) / 2
        return square / len(self._probe)


def _values(
    potential: Potential, product: torch.Tensor, policies: _Policies, weights: Weights
) -> torch.Tensor:
    # A float32 product would be changed where it lies, and may be needed again.
    values = product.float() if product.dtype != torch.float32 else product.clone()
    return potential.values(values, teacher=policies.teacher, student=policies.student, weights=weights)


def _row_blocks(count: int, border: int, matrix: torch.Tensor) -> Iterator[slice]:
    """Yield blocks of rows of which none lies on both sides of `border`."""
    size = max(1, _BLOCK_BYTES // (4 * len(matrix))) if matrix.is_cpu else count
    for first, last in ((0, border), (border, count)):
        for start in range(first, last, size):
            yield slice(start, min(start + size, last))
