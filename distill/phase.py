"""A stretch of training with one objective: what the loop does, taken from the settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch

from .minillm import SequenceScore
from .sides import Side

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .critic_settings import LearnedCritic
    from .stored_as import Rounding


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A stretch of training with one objective."""

    name: str
    steps: int
    lr: float
    off: Side | None  # on the teacher's texts
    on: Side | None  # on the student's texts; None samples none
    discount: float = 0.0
    estimator: Literal["full", "immediate", "sampled"] = "full"
    temperature: float = 1.0  # at which the student's texts are sampled
    critic: LearnedCritic | None = None  # None: in closed form
    sequence_score: SequenceScore | None = None  # in the place of the game's own on the student's texts
    roundings: Mapping[torch.nn.Parameter, Rounding] = field(default_factory=dict)  # of the student's weights
