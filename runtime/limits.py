"""How far a file may be from its checkpoint before it is refused, by scheme."""

from __future__ import annotations

from collections.abc import Mapping

# Highest mean KL(checkpoint || file) a token, in nats. The first group claims to be the checkpoint: what is left is
# rounding. The others are faults of a kind that no rounding explains: about four times what SmolLM2-135M loses, the
# smallest and so the most sensitive of the models that this is meant for (docs/results.md has the table). Types of
# two bits and less have no limit: what they lose depends on the model alone.
KL_LIMITS: Mapping[str, float] = {
    "gguf-f32": 1e-4,
    "gguf-f16": 1e-3,
    "gguf-bf16": 1e-2,
    "gguf-q8_0": 1e-2,
    "onnx-fp32": 1e-4,
    "onnx-int8": 2e-2,
}


def kl_limits(overrides: Mapping[str, float]) -> Mapping[str, float]:
    """Return the table with a recipe's own limits in it."""
    return {**KL_LIMITS, **overrides}
