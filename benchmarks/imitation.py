"""How well a student imitates its teacher, text by text, so that two students can be compared on the same prompts.

Both next-token distributions are compared over the whole vocabulary at every token of a text, and averaged over the
text. On the student's own samples, drawn at temperature 1:

- `own_nll_nats`     -log p of its tokens under the teacher (low also for a student that says too little)
- `own_tv`, `own_jsd_nats`, `own_reverse_kl_nats`   distances to the teacher at the states it comes to itself
- `own_entropy_nats`, `own_tokens`                  of its distribution; length

and on the teacher's samples for the same prompts:

- `teacher_kl_nats`  KL(teacher || student)
- `teacher_tv`, `teacher_jsd_nats`
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ammd.distill.batches import TokenPair, build_batch
from ammd.distill.divergences import GeneralisedJSD, ReverseKL, TotalVariation
from ammd.distill.policy import Policy
from ammd.distill.rollout import Sampling, sample_responses

Measured = dict[str, list[float]]  # by metric, one number a text

_BATCH_ROWS = 64
_BLOCK_TOKENS = 256  # whose distributions exist at once


@torch.inference_mode()
def measure_imitation(
    student: Policy,
    teacher: Policy,
    teacher_texts: Sequence[TokenPair],
    *,
    sampling: Sampling,
    seed: int,
) -> tuple[Measured, list[list[int]]]:
    """Return all metrics, and the student's samples for the prompts of `teacher_texts`, on the student's device."""
    teacher.to(student.device)
    prompts = [prompt for prompt, _ in teacher_texts]
    generator = torch.Generator().manual_seed(seed)
    own = sample_responses(student.model, prompts, sampling=sampling, randomness=generator)
    on_own = compare(student, teacher, list(zip(prompts, own, strict=True)))
    on_teacher = compare(student, teacher, teacher_texts)
    measured = {f"own_{name}": on_own[name] for name in ("nll_nats", "tv", "jsd_nats", "reverse_kl_nats")}
    measured["own_entropy_nats"] = on_own["entropy_nats"]
    measured["own_tokens"] = [float(len(response)) for response in own]
    measured |= {f"teacher_{name}": on_teacher[name] for name in ("kl_nats", "tv", "jsd_nats")}
    return measured, own


@torch.inference_mode()
def compare(student: Policy, teacher: Policy, pairs: Sequence[TokenPair]) -> Measured:
    """Return the mean of every measure over the response of each pair."""
    order = sorted(range(len(pairs)), key=lambda index: sum(map(len, pairs[index])))
    found: Measured = {}
    for start in range(0, len(order), _BATCH_ROWS):
        rows = order[start : start + _BATCH_ROWS]
        batch = build_batch([pairs[row] for row in rows]).to(student.device)
        values = _at_states(student(batch), teacher(batch), student, teacher, batch.targets)
        lengths = [len(pairs[row][1]) for row in rows]
        for name, tokens in values.items():
            kept = found.setdefault(name, [0.0] * len(pairs))
            for row, piece in zip(rows, tokens.split(lengths), strict=True):
                kept[row] = float(piece.mean())
    return found


def _at_states(
    student_hiddens: torch.Tensor,
    teacher_hiddens: torch.Tensor,
    student: Policy,
    teacher: Policy,
    targets: torch.Tensor,
) -> dict[str, torch.Tensor]:
    blocks: list[dict[str, torch.Tensor]] = []
    for start in range(0, len(targets), _BLOCK_TOKENS):
        rows = slice(start, start + _BLOCK_TOKENS)
        own = (student_hiddens[rows] @ student.head.T).float().log_softmax(-1)
        other = (teacher_hiddens[rows] @ teacher.head.T).float().log_softmax(-1)
        blocks.append(
            {
                "nll_nats": -other.gather(1, targets[rows, None]).squeeze(1),
                "kl_nats": ((other - own) * other.exp()).sum(-1),
                "tv": TotalVariation()(other, own)[0],
                "jsd_nats": GeneralisedJSD(0.5)(other, own)[0],
                "reverse_kl_nats": ReverseKL()(other, own)[0],
                "entropy_nats": -(own * own.exp()).sum(-1),
            }
        )
    return {name: torch.cat([block[name] for block in blocks]) for name in blocks[0]}
