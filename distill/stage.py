"""The distill stage: from the prepared student to the trained one.

warm/           the student after the warm start
student/        the student after the second phase
curves.jsonl    one JSON object for each step of both phases (`StepLog`)
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .settings import DistillSettings
from .training import Training


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillInputs:
    """What the prepare stage wrote."""

    prepared: Path


def run(inputs: DistillInputs, settings: DistillSettings, folder: Path) -> dict[str, Any]:
    """Train the prepared student in both phases; write both checkpoints and the curves into `folder`.

    Raises:
        DataError: The prepared texts cannot be read.
        DistillError: A model cannot be used.
        NonFiniteLossError: Training diverged.
    """
    training = Training(
        prepared=inputs.prepared,
        student=inputs.prepared / "student",
        settings=settings,
        curves=folder / "curves.jsonl",
    )
    training.warm(settings.warm)
    training.save(folder / "warm")
    training.second(settings.objective)
    training.save(folder / "student")
    return {
        "precision": "bfloat16" if training.dtype == torch.bfloat16 else "float32",
        "parameters": sum(parameter.numel() for parameter in training.student.parameters()),
        "warm_steps": settings.warm.steps,
        "objective": settings.objective.kind,
        "objective_steps": settings.objective.steps,
    }
