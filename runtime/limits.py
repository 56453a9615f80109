"""How far a file may be from its checkpoint before it is refused, by scheme."""

from __future__ import annotations

from collections.abc import Mapping

# Highest mean KL(checkpoint || file) a token, in nats. The first group claims to be the checkpoint: what is left is
# rounding. In the second a file over its limit has a fault that no rounding explains, as weights of the wrong head: the
# limit is several times what the quickstart's student loses, a small model and so a sensitive one (docs/results.md has
# the table). Types of three bits and less have none, nor have mixtures: what they lose depends on the model, and a
# mixture's budget says what it may.
KL_LIMITS: Mapping[str, float] = {
    "gguf-f32": 1e-4,
    "gguf-f16": 1e-3,
    "gguf-bf16": 1e-2,
    "gguf-q8_0": 1e-2,
    "onnx-fp32": 1e-4,
    "onnx-fp16": 1e-3,
    "onnx-int8": 2e-2,
    "onnx-standard-fp32": 1e-4,
    "onnx-standard-fp16": 1e-3,
    "gguf-q6_k": 0.05,
    "gguf-q5_k_m": 0.5,
    "gguf-q5_k_s": 0.5,
    "gguf-q5_1": 0.5,
    "gguf-q5_0": 0.5,
    "gguf-q4_k_m": 0.5,
    "gguf-q4_k_s": 0.5,
    "gguf-iq4_nl": 1.0,
    "gguf-iq4_xs": 1.0,
    "gguf-q4_1": 1.0,
    "gguf-q4_0": 1.0,
    "onnx-int4": 1.0,
    "onnx-standard-int8": 0.5,
    "onnx-standard-int4": 1.0,
}


# Instead, for encoder-decoders. llama.cpp rounds what a matrix reads to blocks of 8 bits in all these types, and T5's
# feed-forward parts have single numbers a thousand times the others: of flan-t5-small, over 142 response tokens, Q8_0
# loses 0.016 nats, Q6_K 0.088, Q5_K_M 0.097, Q4_K_M 0.142, Q4_0 0.184, and F16 2e-6.
ENCODER_DECODER_LIMITS: Mapping[str, float] = {"gguf-q8_0": 0.1, "gguf-q6_k": 0.5}


def kl_limits(overrides: Mapping[str, float], *, has_encoder: bool = False) -> Mapping[str, float]:
    """Return the table of a kind of model with a recipe's own limits in it."""
    return {**KL_LIMITS, **(ENCODER_DECODER_LIMITS if has_encoder else {}), **overrides}
