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

from dataclasses import dataclass
from typing import Any

import torch

from .objective import Weights, future_gaps, state_terms

# Float32 bytes of one tensor of a block of rows: some five such tensors then fit in the last-level cache.
_BLOCK_BYTES = 2 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class States:
    """The response tokens of a batch, one row each, responses one after the other. N states."""

    teacher_hiddens: torch.Tensor  # [N, H_teacher] after the final norm, detached
    teacher_head: torch.Tensor  # [V, H_teacher]
    targets: torch.Tensor  # int64 [N]  the token that was taken
    last_in_row: torch.Tensor  # bool [N]  True at the last token of each response


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """The score-function term of the long view; only meaningful on the student's own texts."""

    discount: float  # 0 leaves the term out
    baseline: float  # subtracted from the future gaps; must not depend on this batch's actions
    temperature: float = 1.0  # at which the texts were sampled: the policy that took the actions


@dataclass(slots=True)
class Sums:
    """Means over the batch's response tokens, filled by `matching_loss`."""

    tokens: int = 0
    kl_nats: float = 0.0
    gap: float = 0.0
    total_variation: float = 0.0
    future_gap: float = 0.0


def matching_loss(
    hiddens: torch.Tensor,
    head: torch.Tensor,
    *,
    states: States,
    weights: Weights,
    score: Score,
    chunk_tokens: int,
) -> tuple[torch.Tensor, Sums]:
    """Return the weighted loss as a scalar that can be differentiated, and the measured means.

    Args:
        hiddens: The student's, after its final norm, in the dtype of its matrix products. [N, H].
        head: The student's unembedding. [V, H]; its gradient is float32.
        states: The teacher's side.
        weights: Of the terms.
        score: The long view.
        chunk_tokens: Rows whose logits exist at once.
    """
    sums = Sums(tokens=len(hiddens))
    loss: torch.Tensor = _MatchingLoss.apply(  # type: ignore[no-untyped-call]  # torch leaves it untyped
        hiddens, head, states, weights, score, chunk_tokens, sums
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
        score: Score,
        chunk_tokens: int,
        sums: Sums,
    ) -> torch.Tensor:
        count = len(hiddens)
        student_head = head.to(hiddens.dtype)
        grad_hiddens = torch.empty_like(hiddens)
        grad_head = torch.zeros_like(head, dtype=torch.float32)
        block_rows = max(1, _BLOCK_BYTES // (4 * len(head)))
        carry = 0.0
        loss = 0.0
        for end in range(count, 0, -chunk_tokens):
            chunk = slice(max(0, end - chunk_tokens), end)
            student_logits = hiddens[chunk] @ student_head.T
            teacher_logits = states.teacher_hiddens[chunk] @ states.teacher_head.T
            for block_end in range(end, chunk.start, -block_rows):
                rows = slice(max(chunk.start, block_end - block_rows), block_end)
                local = slice(rows.start - chunk.start, rows.stop - chunk.start)
                student_logprobs = student_logits[local].float().log_softmax(-1)
                teacher_logprobs = teacher_logits[local].float().log_softmax(-1)
                terms = state_terms(
                    teacher_logprobs, student_logprobs, taken=states.targets[rows], weights=weights
                )
                grad = terms.grad_logits
                loss += float(terms.loss.sum())
                if score.discount > 0:
                    futures = future_gaps(
                        terms.gap, states.last_in_row[rows], discount=score.discount, carry=carry
                    )
                    carry = float(terms.gap[0] + futures[0])
                    advantage = (
                        (futures - score.baseline)
                        .mul_(weights.game)
                        .masked_fill_(states.last_in_row[rows], 0)
                    )
                    # Descend  log Q'(taken) * advantage  with Q' = softmax(logits / temperature), which drew the
                    # texts: its gradient by the logits is  advantage (onehot - Q') / temperature.
                    drew = student_logprobs
                    if score.temperature != 1:
                        drew = drew.div_(score.temperature).log_softmax(-1)
                    taken = drew.gather(1, states.targets[rows, None]).squeeze(1)
                    loss += float((taken * advantage).sum())
                    advantage.div_(score.temperature)
                    grad.sub_(drew.exp_().mul_(advantage[:, None]))
                    grad.scatter_add_(1, states.targets[rows, None], advantage[:, None])
                    sums.future_gap += float(futures.sum()) / count
                sums.kl_nats += float(terms.kl.sum()) / count
                sums.gap += float(terms.gap.sum()) / count
                sums.total_variation += float(terms.total_variation.sum()) / count
                student_logits[local] = grad  # these logits are not needed again
            grad_hiddens[chunk] = student_logits @ student_head
            grad_head += student_logits.T @ hiddens[chunk]
        context.save_for_backward(grad_hiddens.div_(count), grad_head.div_(count))
        context.head_dtype = head.dtype
        return torch.tensor(loss / count)

    @staticmethod
    def backward(context: Any, *grads: torch.Tensor) -> Any:
        grad_hiddens, grad_head = context.saved_tensors
        scale = grads[0]
        return (
            grad_hiddens * scale.to(grad_hiddens.dtype),
            (grad_head * scale).to(context.head_dtype),
            *[None] * 5,
        )
