"""What one training step measured: a line of `curves.jsonl`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from .adversary import Adversary
    from .batches import Batch
    from .chunked import Sums

_NGRAM_TOKENS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLog:
    """Taken before the step changed the student. Gaps, KL, TV and entropy are means over response tokens.

    Names that end in `_off` are of the teacher's texts, those in `_on` of the student's.
    """

    phase: str
    step: int
    seconds: float  # since the phase began
    loss: float
    lr: float
    grad_norm: float
    tokens_per_s: float  # response tokens trained on a second, both sides, since the phase began
    trained_tokens: int | None = None  # response tokens of this step's batch, both sides
    generated_tokens: int | None = None  # that the student wrote for this step and those that share the round
    stood_still: bool | None = None  # the student's step was left out: a critic held too little
    kl_nats: float | None = None  # forward KL on the teacher's texts
    d_off: float | None = None  # moment gap
    d_on: float | None = None
    tv_off: float | None = None
    tv_on: float | None = None
    entropy_off: float | None = None  # of the student, nats
    entropy_on: float | None = None
    future_gap: float | None = None  # mean discounted future gap
    critic_share_off: float | None = None  # share of the closed form's value that a learned critic holds
    critic_share_on: float | None = None
    critic_rms_off: float | None = None  # root mean square of a learned critic, as a share of its bound
    critic_rms_on: float | None = None
    critic_saturation_off: float | None = None  # share of both policies' mass at 99 % of its bound
    critic_saturation_on: float | None = None
    response_tokens_on: float | None = None  # mean length
    repetition_on: float | None = None  # share of 4-token sequences that stood in the same text before
    repetition_off: float | None = None  # the same of the teacher's texts
    compared_off: float | None = None  # share of the tokens at which two vocabularies are compared
    compared_on: float | None = None

    def as_line(self) -> dict[str, Any]:
        """Return what was measured."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def summary(self) -> str:
        """Return the few words that stand beside the progress bar."""
        named = {"KL": self.kl_nats, "d_off": self.d_off, "d_on": self.d_on}
        values = "".join(f"{name} {value:.3f} " for name, value in named.items() if value is not None)
        return f"loss {self.loss:.3f} {values}{self.tokens_per_s:.0f} tokens/s"


def count_tokens(curves: Path) -> dict[str, int | None]:
    """Return what all steps in `curves` trained on and had written; None if some do not tell, as of older versions."""
    rows = [json.loads(line) for line in curves.read_text(encoding="utf-8").splitlines()]
    counts: dict[str, int | None] = {}
    for name in ("trained_tokens", "generated_tokens"):
        counts[name] = sum(row[name] for row in rows) if all(name in row for row in rows) else None
    return counts


def side_fields(side: str, sums: Sums, adversary: Adversary | None) -> dict[str, float | None]:
    """Return the fields of one side, `off` or `on`."""
    means = {"d": sums.gap, "tv": sums.total_variation, "entropy": sums.entropy_nats}
    fields = {name: sums.of_compared(mean) for name, mean in means.items()}
    if adversary is not None:
        fields |= {
            "critic_share": sums.critic_share,
            "critic_rms": adversary.rms,
            "critic_saturation": adversary.saturation,
        }
    return {f"{name}_{side}": value for name, value in fields.items()}


def text_fields(side: str, batch: Batch) -> dict[str, float]:
    """Return repetition in the texts of one side, and the length of the student's."""
    texts = [row[mask].tolist() for row, mask in zip(batch.token_ids, batch.response_mask, strict=True)]
    found = {f"repetition_{side}": sum(map(repeated_share, texts)) / len(texts)}
    if side == "on":
        found["response_tokens_on"] = sum(map(len, texts)) / len(texts)
    return found


def repeated_share(tokens: list[int]) -> float:
    """Return the share of 4-token sequences that stood in the text before; 0 for shorter texts."""
    grams = [tuple(tokens[start : start + _NGRAM_TOKENS]) for start in range(len(tokens) - _NGRAM_TOKENS + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
