"""What is worth saying of an exported file beside its size: what is stored otherwise than meant, what was chosen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any


def file_notes(row: Mapping[str, Any]) -> list[str]:
    """Return one sentence for each remarkable fact of an artifact's row."""
    return [*_fallbacks(row.get("fallbacks") or ()), *_choice(row.get("choice"))]


def _fallbacks(fallbacks: Any) -> list[str]:
    kinds = Counter((entry["asked"], entry["stored"], entry["row_weights"]) for entry in fallbacks)
    return [
        f"{count} tensor{'s' if count > 1 else ''} of rows of {weights} weights stored as {stored} instead of {asked}"
        for (asked, stored, weights), count in kinds.most_common()
    ]


def _choice(choice: Mapping[str, Any] | None) -> list[str]:
    if not choice:
        return []
    ((what, limit),) = choice["budget"].items()
    types = ", ".join(f"{count} {kind}" for kind, count in choice["tensors"].items())
    kl = f"KL {choice['measured_kl_nats']:.3g} nats a token on texts kept back"
    return [f"chosen for {what} = {limit}: {types}; {kl} (expected {choice['expected_kl_nats']:.3g})"]
