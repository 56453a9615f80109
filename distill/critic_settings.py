"""Settings of the game's critics, as the recipe gives them."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ammd.settings import Settings


class ClosedCritic(Settings):
    """The best of all critics, known in closed form from both policies; nothing to train."""

    kind: Literal["closed"] = "closed"


class LearnedCritic(Settings):
    """What every critic has that is trained beside the student, one for each side."""

    inputs: Literal["student", "teacher", "both"] = "both"
    """Whose final hidden states it sees."""
    start: Literal["zero", "difference", "log_ratio"] = "difference"
    """`zero` starts from nothing; `difference` from matrices that make it half the difference of both policies'
    logits, close to the closed form; `log_ratio` adds half the policies' log-ratio, exactly the closed form."""
    ascents: int = Field(default=3, ge=1)
    """Ascent steps before each step of the student."""
    ascent_tokens: int = Field(default=256, ge=1)
    """States drawn from the batch for each ascent step."""
    lr: float = Field(default=1e-3, gt=0)
    """Learning rate of the critic's Adam."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Of the critic's Adam; pulls it back to its start where that is `log_ratio`."""
    max_change: float = Field(default=0.1, gt=0)
    """An ascent step changes the critic by at most this much: root mean square under both policies, as a share of
    its bound."""
    min_share: float = Field(default=0.5, ge=0, le=1)
    """The student stands still while a critic holds less than this share of the closed form's value."""

    @model_validator(mode="after")
    def _difference_needs_both(self) -> Self:
        if self.start == "difference" and self.inputs != "both":
            raise ValueError('start "difference" needs inputs "both": it compares the two policies')
        return self


class LinearCritic(LearnedCritic):
    """A matrix from hidden states to the vocabulary."""

    kind: Literal["linear"] = "linear"


class LowRankCritic(LearnedCritic):
    """A matrix from hidden states into a small space, and another from there to the vocabulary."""

    kind: Literal["lowrank"] = "lowrank"
    rank: int | None = Field(default=None, ge=1)
    """Width of that space, with a trained matrix to the vocabulary; absent takes the teacher's unembedding."""

    @model_validator(mode="after")
    def _difference_needs_the_unembedding(self) -> Self:
        if self.start == "difference" and self.rank is not None:
            raise ValueError('start "difference" needs the teacher\'s unembedding: leave `rank` out')
        return self


class MlpCritic(LearnedCritic):
    """The low-rank critic with the teacher's unembedding, and a hidden layer beside its matrix."""

    kind: Literal["mlp"] = "mlp"
    hidden: int = Field(default=256, ge=1)
    """Width of the hidden layer."""


Critic = Annotated[
    ClosedCritic | LinearCritic | LowRankCritic | MlpCritic,
    Field(discriminator="kind"),
]
