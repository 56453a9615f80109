"""The teacher's fine-tuning: it learns the responses given in the data before it teaches.

A teacher that does not know a task has little to teach of it. It is trained as a student is by `sft`, with itself as it
was looking on, so that the curves also tell how far it went from that.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .batches import TokenPair, endless_order
from .checkpoint import copy_in_dtype
from .device import choose_device, matrix_dtype
from .fleet import Fleet
from .loop import chunk_tokens
from .mean_loss import mean_loss
from .objective import Weights
from .phase import Phase
from .policy import Policy
from .settings import DistillSettings
from .sides import Side
from .step_log import count_tokens
from .supply import BothSides, TeacherTexts
from .trainer import run_phase

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .settings import PrepareSettings
    from .tuning_settings import Tuning

CURVES_NAME = "tuning.jsonl"
_GIVEN = Weights(cross_entropy=1.0)


def tune(
    teacher: PreTrainedModel,
    wanted: Tuning,
    pairs: Sequence[TokenPair],
    heldout: Sequence[TokenPair],
    *,
    settings: PrepareSettings,
    folder: Path,
) -> dict[str, Any]:
    """Train `teacher`, which is in float32, in place; write a line a step to `tuning.jsonl` and return what came of it.

    Args:
        teacher: Is changed.
        wanted: How long, and how fast.
        pairs: Texts to learn, at least one.
        heldout: Texts that tell how well; may be none.
        settings: Of the stage.
        folder: Of the stage.

    Raises:
        NonFiniteLossError: Training diverged.
        CollapseError: The teacher degenerated.
    """
    device = choose_device(settings.device)
    dtype = matrix_dtype("auto", device)
    trained = Policy(teacher.to(device))
    # In the same dtype it would share its numbers with the teacher, and change with it.
    kept = copy.deepcopy(teacher) if dtype == teacher.dtype else copy_in_dtype(teacher, dtype)
    before = Policy(kept).requires_grad_(False)
    loop = DistillSettings(
        batch_size=wanted.batch_size,
        micro_batch_size=wanted.micro_batch_size,
        device=settings.device,
        seed=settings.seed,
    )
    lengths = [len(prompt) + len(response) for prompt, response in pairs]
    order = endless_order(lengths, batch_size=wanted.batch_size, seed=settings.seed)
    phase = Phase(
        name="tuning",
        steps=wanted.steps,
        lr=wanted.lr,
        off=Side(weights=_GIVEN, rows=wanted.batch_size),
        on=None,
    )
    loss_before = _mean_loss(before, heldout, loop)
    run_phase(
        phase,
        student=trained,
        teacher=before,
        supply=BothSides(teacher_texts=TeacherTexts(pairs, None, order, dtype=dtype), student_texts=None),
        longest_tokens=max(lengths),
        settings=loop,
        curves=folder / CURVES_NAME,
        fleet=Fleet(device),
    )
    return {
        "texts": len(pairs),
        "steps": wanted.steps,
        "trained_tokens": count_tokens(folder / CURVES_NAME)["trained_tokens"],
        "heldout_texts": len(heldout),
        "heldout_nats_before": loss_before,
        "heldout_nats": _mean_loss(Policy(copy_in_dtype(teacher, dtype)), heldout, loop),
    }


@torch.no_grad()
def _mean_loss(policy: Policy, pairs: Sequence[TokenPair], settings: DistillSettings) -> float | None:
    """Return nats a response token; None where there is no response."""
    if not pairs:
        return None
    size = settings.batch_size
    texts = TeacherTexts(pairs, None, iter(()), dtype=policy.head.dtype)
    return mean_loss(
        policy,
        policy,
        [texts.batch_of(range(len(pairs))[start : start + size]) for start in range(0, len(pairs), size)],
        weights=_GIVEN,
        chunk_tokens=chunk_tokens(settings, vocabulary=len(policy.head), device=policy.device),
        fleet=Fleet(policy.device),
    )
