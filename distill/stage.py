"""The distill stage: from the prepared student to the trained one.

warm/           the student after the warm start
student/        the student after the second phase
curves.jsonl    one JSON object for each step of both phases (`StepLog`)

A killed stage goes on from its last snapshot, to the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ammd.errors import CollapseError, NonFiniteLossError

from .curve_stream import CurveStreams, TrackInputs
from .depth import layer_counts_of
from .device import describe_device
from .settings import DistillSettings
from .snapshots import Snapshots
from .staged import read_cuts
from .step_log import count_tokens
from .training import Training

LAST_GOOD_NAME = "last-good"
CURVES_NAME = "curves.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillInputs:
    """What the prepare stage wrote, and where the training may keep its snapshots."""

    prepared: Path
    resume: Path | None = None
    track: TrackInputs | None = None  # where the curves go besides


def run(inputs: DistillInputs, settings: DistillSettings, folder: Path) -> dict[str, Any]:
    """Train the prepared student in both phases; write both checkpoints and the curves into `folder`.

    Raises:
        DataError: The prepared texts cannot be read.
        DistillError: A model cannot be used.
        NonFiniteLossError: Training diverged.
        CollapseError: Student or critic degenerated; the student of the last snapshot is kept.
    """
    training = Training(
        prepared=inputs.prepared,
        student=inputs.prepared / "student",
        settings=settings,
        curves=folder / CURVES_NAME,
        snapshots=Snapshots(inputs.resume) if inputs.resume else None,
        cuts=read_cuts(inputs.prepared),
    )
    curves = CurveStreams(inputs.track if training.fleet.is_first else None, folder / CURVES_NAME, settings)
    training.after_step = curves.send
    try:
        training.warm(settings.warm)
        training.save_between(folder / "warm")
        training.second(settings.objective)
    except (CollapseError, NonFiniteLossError) as exc:
        if inputs.resume is None or not training.save_last_snapshot(inputs.resume / LAST_GOOD_NAME):
            raise
        kept = inputs.resume / LAST_GOOD_NAME
        hint = f"{exc.hint}; the student of the last snapshot is in `{kept}`"
        raise type(exc)(str(exc), hint=hint, **exc.facts, last_good=str(kept)) from exc
    finally:
        curves.finish()
    training.save(folder / "student")
    tokens = count_tokens(folder / CURVES_NAME) if training.fleet.is_first else {}
    return {
        **training.cuts.facts(),
        **layer_counts_of(training.student.model),
        "device": describe_device(training.device),
        "precision": "bfloat16" if training.dtype == torch.bfloat16 else "float32",
        "parameters": training.parameters,
        "warm_steps": settings.warm.steps,
        "objective": settings.objective.kind,
        "objective_steps": settings.objective.steps,
        **tokens,
    }
