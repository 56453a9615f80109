"""Loss and gradient from hidden states, without ever holding [B, T, V].

Logits of response tokens exist for one chunk at a time: both heads project the chunk, `objective.py` gives values
and the gradient by the student's logits, and that gradient goes straight back through the head. The backward pass
of the network then starts from a ready [N, H] gradient. Memory is twice `chunk_tokens * V` numbers in the dtype of
the matrix products; what is done to each number in float32 is done a few rows at a time, which stay in the
processor's cache meanwhile.

Chunks run from the last token to the first, so that the future gaps of a token (discount > 0) are known when
its own gradient is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from .comparison import Comparison, without_tokens
from .critics import Potential
from .objective import StateTerms, Weights, state_terms
from .score import Block, Carry, Credit, Estimator

# Float32 bytes of one tensor of a block of rows: some five such tensors then fit in a CPU's last-level cache.
_BLOCK_BYTES = 2 << 20
# Float32 bytes of a block of the head's gradient while it is added: all at once would take its size again, and half.
_PRODUCT_BYTES = 16 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class States:
    """The response tokens of a batch, one row each, responses one after the other. N states."""

    teacher_hiddens: torch.Tensor  # [N, H_teacher] after the final norm, detached
    teacher_head: torch.Tensor  # [V, H_teacher]
    targets: torch.Tensor  # int64 [N]  the token that was taken
    last_in_row: torch.Tensor  # bool [N]  True at the last token of each response
    drawn_logprobs: torch.Tensor | None = None  # float32 [N]  of `targets` under what drew them, where known
    comparison: Comparison | None = None  # of two vocabularies; None: both models have one

    def count_compared(self, rows: slice) -> int:
        """Return at how many of these states both distributions are compared."""
        return rows.stop - rows.start if self.comparison is None else int(self.comparison.aligned[rows].sum())


@dataclass(slots=True)
class Sums:
    """Means over the batch's response tokens, filled by `matching_loss`.

    Where vocabularies differ, a token at which nothing is compared adds 0 to them; `of_compared` leaves it out.
    """

    tokens: int = 0
    kl_nats: float = 0.0
    gap: float = 0.0
    game_value: float = 0.0
    best_value: float = 0.0
    total_variation: float = 0.0
    entropy_nats: float = 0.0
    future_gap: float = 0.0
    answered_gap: float = 0.0  # what a token answers for in the score-function term
    compared_share: float = 0.0  # of the tokens: at which both distributions are compared

    def add(self, terms: StateTerms, credit: Credit, *, compared: int) -> None:
        """Add the states of a block, of which so many are compared."""
        self.compared_share += compared / self.tokens
        self.future_gap += credit.future / self.tokens
        self.answered_gap += credit.answered / self.tokens
        self.kl_nats += float(terms.kl.sum()) / self.tokens
        self.gap += float(terms.gap.sum()) / self.tokens
        self.game_value += float(terms.game_value.sum()) / self.tokens
        self.best_value += float(terms.best_value.sum()) / self.tokens
        self.total_variation += float(terms.total_variation.sum()) / self.tokens
        self.entropy_nats += float(terms.entropy.sum()) / self.tokens

    def measured(self) -> list[float]:
        """Return all means, in the order in which `replace` takes them."""
        return [getattr(self, name) for name in _MEANS]

    def replace(self, means: Sequence[float]) -> None:
        """Put other means in the place of all."""
        for name, value in zip(_MEANS, means, strict=True):
            setattr(self, name, value)

    def of_compared(self, mean: float) -> float | None:
        """Return a mean over the tokens that are compared from one over all; None where there are none."""
        return mean / self.compared_share if self.compared_share else None

    @property
    def critic_share(self) -> float:
        """Share of the closed form's value that the critic reaches; 1 where there is nothing to reach."""
        return self.game_value / self.best_value if self.best_value > 0 else 1.0


_MEANS = tuple(field.name for field in fields(Sums) if field.name != "tokens")


def matching_loss(
    hiddens: torch.Tensor,
    head: torch.Tensor,
    *,
    states: States,
    weights: Weights,
    score: Estimator,
    chunk_tokens: int,
    critic: Potential | None = None,
    sums: Sums | None = None,
) -> tuple[torch.Tensor, Sums]:
    """Return the weighted loss as a scalar that can be differentiated, and the measured means.

    A batch may also come in pieces: the losses of all calls then add up to the batch's own.

    Args:
        hiddens: The student's, after its final norm, in the dtype of its matrix products. [N, H].
        head: The student's unembedding. [V, H]; its gradient is float32.
        states: The teacher's side.
        weights: Of the terms.
        score: Estimates what the gradient has beyond the exact terms.
        chunk_tokens: Rows whose logits exist at once.
        critic: A learned one; None takes the closed form.
        sums: Of a batch of which these are only some states; `sums.tokens` is the number of all. Is added to.
    """
    sums = Sums(tokens=len(hiddens)) if sums is None else sums
    loss: torch.Tensor = _MatchingLoss.apply(  # type: ignore[no-untyped-call]  # torch leaves it untyped
        hiddens, head, states, weights, score, chunk_tokens, critic, sums
    )
    return loss, sums


class _MatchingLoss(torch.autograd.Function):
    """Computes both gradients in the forward pass; the backward pass only scales them."""

    @staticmethod
    def forward(
        context: Any,
        hiddens: torch.Tensor,
        head: torch.Tensor,
        states: States,
        weights: Weights,
        score: Estimator,
        chunk_tokens: int,
        critic: Potential | None,
        sums: Sums,
    ) -> torch.Tensor:
        count = len(hiddens)
        student_head = head.to(hiddens.dtype)
        grad_hiddens = torch.empty_like(hiddens)
        grad_head = torch.zeros_like(head, dtype=torch.float32) if context.needs_input_grad[1] else None
        block_rows = max(1, _BLOCK_BYTES // (4 * len(head))) if head.is_cpu else chunk_tokens
        carry: Carry = (0.0, 0)
        loss = 0.0
        for end in range(count, 0, -chunk_tokens):
            chunk = slice(max(0, end - chunk_tokens), end)
            student_logits = hiddens[chunk] @ student_head.T
            teacher_logits = states.teacher_hiddens[chunk] @ states.teacher_head.T
            products = critic.projected[chunk] @ critic.matrix.T if critic else None
            for block_end in range(end, chunk.start, -block_rows):
                rows = slice(max(chunk.start, block_end - block_rows), block_end)
                local = slice(rows.start - chunk.start, rows.stop - chunk.start)
                student_logprobs = student_logits[local].float().log_softmax(-1)
                teacher_logprobs = teacher_logits[local].float().log_softmax(-1)
                taken = score.actions(student_logprobs, states.targets[rows])
                terms = _terms(
                    (teacher_logits[local], teacher_logprobs),
                    (student_logits[local], student_logprobs),
                    states=states,
                    rows=rows,
                    taken=taken,
                    weights=weights,
                    critic=(critic, products[local].float()) if critic and products is not None else None,
                    exact=score.is_exact,
                )
                loss += float(terms.loss.sum())
                drawn = states.drawn_logprobs
                block = Block(
                    terms=terms,
                    teacher_logprobs=teacher_logprobs,
                    student_logprobs=student_logprobs,
                    taken=taken,
                    drawn_logprobs=drawn[rows] if drawn is not None else None,
                    last_in_row=states.last_in_row[rows],
                    weights=weights,
                )
                credit, carry = score.add(block, carry)
                loss += credit.loss
                sums.add(terms, credit, compared=states.count_compared(rows))
                student_logits[local] = terms.grad_logits  # these logits are not needed again
            grad_hiddens[chunk] = student_logits @ student_head
            if grad_head is not None:
                _add_product(grad_head, student_logits.T, hiddens[chunk])
        context.gradients = grad_hiddens.div_(sums.tokens), grad_head
        if grad_head is not None:
            grad_head.div_(sums.tokens)
        context.head_dtype = head.dtype
        return torch.tensor(loss / sums.tokens, device=hiddens.device)

    @staticmethod
    def backward(context: Any, *grads: torch.Tensor) -> Any:
        # Scaled in place and let go: the head's is as large as the head, and a backward pass happens once.
        (grad_hiddens, grad_head), context.gradients = context.gradients, None
        scale = grads[0]
        grad_hiddens.mul_(scale)
        if grad_head is not None:
            grad_head = grad_head.mul_(scale).to(context.head_dtype)
        return (grad_hiddens, grad_head, *[None] * 6)


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Add `left @ right`, rounded to their dtype, to the float32 `total`, [V, H], a block of rows at a time."""
    rows = max(1, _PRODUCT_BYTES // (4 * total.shape[1]))
    for start in range(0, len(total), rows):
        block = slice(start, start + rows)
        total[block] += left[block] @ right


def _terms(
    teacher: tuple[torch.Tensor, torch.Tensor],
    student: tuple[torch.Tensor, torch.Tensor],
    *,
    states: States,
    rows: slice,
    taken: torch.Tensor,
    weights: Weights,
    critic: tuple[Potential, torch.Tensor] | None,
    exact: bool,
) -> StateTerms:
    """Return the terms of a block of rows, by the student's tokens.

    Args:
        teacher: Logits and log-probabilities of its tokens, [C, V_teacher] each.
        student: Likewise, [C, V].
        states: Of all rows.
        rows: The block's.
        taken: See `state_terms`. int64 [C].
        weights: See `state_terms`.
        critic: A learned one with its product at these rows; None takes the closed form.
        exact: See `state_terms`.
    """
    comparison = None if states.comparison is None else states.comparison.rows(rows)
    compared, actions, wanted = (teacher[1], student[1]), taken, weights
    if comparison is not None:
        compared = comparison.vocabulary.compared(*compared)
        actions, wanted = comparison.outcomes_of(taken), without_tokens(weights)
    values = None
    if critic is not None:
        potential, product = critic
        values = potential.values(
            product, teacher=(teacher[0], compared[0]), student=(student[0], compared[1]), weights=weights
        )
    terms = state_terms(*compared, taken=actions, weights=wanted, critic=values, exact=exact)
    if comparison is None:
        return terms
    return comparison.by_tokens(
        terms, student[1], compared[1], targets=states.targets[rows], cross_entropy=weights.cross_entropy
    )
