"""How far distributions can be compared where student and teacher have different tokenizers, and whether far enough.

The prepare stage measures it on the training texts and keeps it in `match.json`, which is absent with one tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ammd.artifact import write_json
from ammd.errors import DataError, DistillError

from .one_tokenizer import needs_one_tokenizer
from .settings import Sft

if TYPE_CHECKING:
    from .batches import TokenPair
    from .settings import Objective
    from .shared_vocabulary import SharedVocabulary
    from .teacher_states import TeacherStates
    from .two_tokenizers import TwoTokenizers

NAME = "match.json"
LEAST_SHARED_MASS = 0.5
LEAST_ALIGNED_SHARE = 0.2
_WEIGHED_TEXTS = 64  # on which the teacher's probability mass is measured
_ROWS = 64  # whose logits exist at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """What two vocabularies and two spellings of the training texts have in common."""

    teacher_tokens: int
    student_tokens: int
    shared_tokens: int  # that both have, end tokens as one
    aligned_share: float  # of the student's response tokens: before them both have said the same text
    teacher_aligned_share: float  # of the teacher's
    shared_mass: float  # of the teacher's probability there: on tokens that both have
    beginning_mass: float  # on its other tokens that count for a shared one which their text begins with
    remainder_mass: float  # on what is left

    @property
    def misfit(self) -> str:
        """Why the distributions are not to be compared; empty where they are."""
        if self.aligned_share < LEAST_ALIGNED_SHARE:
            return (
                f"of the student's response tokens `{self.aligned_share:.0%}` begin where a token of the teacher's "
                f"does, and {LEAST_ALIGNED_SHARE:.0%} is the least"
            )
        if self.shared_mass < LEAST_SHARED_MASS:
            return (
                f"tokens that both have hold `{self.shared_mass:.0%}` of the teacher's probability, and "
                f"{LEAST_SHARED_MASS:.0%} is the least"
            )
        return ""


@torch.inference_mode()
def measure_match(
    tokenizers: TwoTokenizers,
    vocabulary: SharedVocabulary,
    *,
    student: Sequence[TokenPair],
    teacher: Sequence[TokenPair],
    states: TeacherStates,
    head: torch.Tensor,
) -> Match:
    """Measure it on the training texts.

    Args:
        tokenizers: Both.
        vocabulary: What they share.
        student: Prompts and responses in its tokens.
        teacher: The same in its tokens.
        states: The teacher's at these responses.
        head: Its unembedding, in the dtype of the states. [V, H].
    """
    places = [
        [place for _, place in tokenizers.common_states(ours, theirs)]
        for (_, ours), (_, theirs) in zip(student, teacher, strict=True)
    ]
    masses = torch.zeros(3, dtype=torch.float64)
    outcomes = vocabulary.teacher
    remainder = len(outcomes.first)
    for text, (some, (_, response)) in enumerate(zip(places[:_WEIGHED_TEXTS], teacher, strict=False)):
        rows = states.rows([text], [len(response)])[some].to(head.device, head.dtype)
        for start in range(0, len(rows), _ROWS):
            probs = (rows[start : start + _ROWS] @ head.T).float().softmax(-1).sum(0)
            own, left = probs[outcomes.is_own].sum(), probs[outcomes.of == remainder].sum()
            masses += torch.stack([own, probs.sum() - own - left, left]).double().cpu()
    aligned = sum(map(len, places))
    shared, beginning, left = (masses / masses.sum().clamp(min=1)).tolist()
    return Match(
        teacher_tokens=tokenizers.sizes[0],
        student_tokens=tokenizers.sizes[1],
        shared_tokens=remainder,
        aligned_share=aligned / sum(len(response) for _, response in student),
        teacher_aligned_share=aligned / sum(len(response) for _, response in teacher),
        shared_mass=shared,
        beginning_mass=beginning,
        remainder_mass=left,
    )


def check_objective(objective: Objective, match: Match | None) -> None:
    """Check that `objective` can be descended by a student whose tokenizer is its own; with one tokenizer, all can.

    Raises:
        DistillError: It needs one tokenizer, or more in common than the two have.
    """
    if match is None or isinstance(objective, Sft):
        return
    if (reason := needs_one_tokenizer(objective)) is not None:
        raise DistillError(f"objective `{objective.kind}` {reason[0]}", hint=reason[1])
    if match.misfit:
        raise DistillError(
            f"student and teacher have too little in common for objective `{objective.kind}`: {match.misfit}",
            hint='set `distill.objective = "sft"`: it learns from the teacher\'s responses, in any tokens',
            **asdict(match),
        )


def write_match(folder: Path, match: Match) -> None:
    """Write `match` into the folder of the prepare stage."""
    write_json(folder / NAME, asdict(match))


def read_match(folder: Path) -> Match | None:
    """Read what `write_match` wrote; None where student and teacher have one tokenizer.

    Raises:
        DataError: The file is not of this form.
    """
    path = folder / NAME
    if not path.exists():
        return None
    try:
        return Match(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as exc:
        raise DataError(f"`{path}` does not say what is matched: {exc}", path=str(path)) from exc
