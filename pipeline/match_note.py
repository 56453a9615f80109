"""What two tokenizers had in common, in the words of the report and the model card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def match_note(summary: Mapping[str, Any]) -> str | None:
    """Return how a student that keeps its own tokenizer learnt from a teacher with another; None with one tokenizer."""
    match = summary["match"]
    if match is None:
        return None
    if match["misfit"]:
        learnt = "Nothing was matched: the student learnt from the teacher's responses alone. Of its response tokens"
    else:
        when = "In the warm start" if summary["training"]["objective"] == "sft" else "In training"
        learnt = (
            f"{when} both distributions were matched on the shared tokens and a remainder, wherever both had said the "
            "same text. Of the student's response tokens"
        )
    shared, beginning, remainder = (
        f"{100 * match[key]:.1f} %" for key in ("shared_mass", "beginning_mass", "remainder_mass")
    )
    return (
        f"Teacher and student have tokenizers of their own: {match['teacher_tokens']:,} and "
        f"{match['student_tokens']:,} tokens, of which they share {match['shared_tokens']:,}. "
        f"{learnt} {100 * match['aligned_share']:.0f} % begin there; tokens that both have hold {shared} of the "
        f"teacher's probability at these places, others that count for the shared token they begin with {beginning}, "
        f"the remainder {remainder}."
    )
