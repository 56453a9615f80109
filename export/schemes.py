"""What can be made of a checkpoint: each scheme's name, and what llama.cpp calls it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Scheme(StrEnum):
    """A file format with its quantization; also the name of the artifact that it makes."""

    GGUF_F32 = "gguf-f32"
    GGUF_F16 = "gguf-f16"
    GGUF_BF16 = "gguf-bf16"
    GGUF_Q8_0 = "gguf-q8_0"
    GGUF_Q6_K = "gguf-q6_k"
    GGUF_Q5_K_M = "gguf-q5_k_m"
    GGUF_Q5_K_S = "gguf-q5_k_s"
    GGUF_Q5_1 = "gguf-q5_1"
    GGUF_Q5_0 = "gguf-q5_0"
    GGUF_Q4_K_M = "gguf-q4_k_m"
    GGUF_Q4_K_S = "gguf-q4_k_s"
    GGUF_Q4_1 = "gguf-q4_1"
    GGUF_Q4_0 = "gguf-q4_0"
    GGUF_IQ4_NL = "gguf-iq4_nl"
    GGUF_IQ4_XS = "gguf-iq4_xs"
    GGUF_Q3_K_L = "gguf-q3_k_l"
    GGUF_Q3_K_M = "gguf-q3_k_m"
    GGUF_Q3_K_S = "gguf-q3_k_s"
    GGUF_IQ3_M = "gguf-iq3_m"
    GGUF_IQ3_S = "gguf-iq3_s"
    GGUF_IQ3_XS = "gguf-iq3_xs"
    GGUF_IQ3_XXS = "gguf-iq3_xxs"
    GGUF_Q2_K = "gguf-q2_k"
    GGUF_Q2_K_S = "gguf-q2_k_s"
    GGUF_IQ2_M = "gguf-iq2_m"
    GGUF_IQ2_S = "gguf-iq2_s"
    GGUF_IQ2_XS = "gguf-iq2_xs"
    GGUF_IQ2_XXS = "gguf-iq2_xxs"
    GGUF_IQ1_M = "gguf-iq1_m"
    GGUF_IQ1_S = "gguf-iq1_s"
    GGUF_TQ2_0 = "gguf-tq2_0"
    GGUF_TQ1_0 = "gguf-tq1_0"
    GGUF_MIXED = "gguf-mixed"
    ONNX_FP32 = "onnx-fp32"
    ONNX_FP16 = "onnx-fp16"
    ONNX_INT8 = "onnx-int8"
    ONNX_INT4 = "onnx-int4"
    ONNX_STANDARD_FP32 = "onnx-standard-fp32"
    ONNX_STANDARD_FP16 = "onnx-standard-fp16"
    ONNX_STANDARD_INT8 = "onnx-standard-int8"
    ONNX_STANDARD_INT4 = "onnx-standard-int4"

    @property
    def type_name(self) -> str:
        """The part after the format, as it stands in file names."""
        return self.value.partition("-")[2]


DEFAULT_SCHEMES = (
    Scheme.GGUF_F16,
    Scheme.GGUF_Q8_0,
    Scheme.GGUF_Q4_0,
    Scheme.GGUF_Q4_K_M,
    Scheme.ONNX_INT4,
)
CONVERTED = (Scheme.GGUF_F32, Scheme.GGUF_F16, Scheme.GGUF_BF16)  # by the converter itself, unquantized
GGUF_SCHEMES = tuple(scheme for scheme in Scheme if scheme.value.startswith("gguf-"))
STANDARD_SCHEMES = tuple(scheme for scheme in Scheme if scheme.value.startswith("onnx-standard-"))
ONNX_SCHEMES = tuple(
    scheme
    for scheme in Scheme
    if scheme.value.startswith("onnx-") and scheme not in STANDARD_SCHEMES  # by onnxruntime-genai
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """What llama.cpp makes of a scheme: most matrices of one type, some of finer ones."""

    file_type: str  # in llama.h, without its prefix
    head: str  # type of the output matrix, and of a token embedding that is tied to it


def mix_of(scheme: Scheme) -> Mix | None:
    """Return llama.cpp's mix, or None for a scheme that its quantizer does not make."""
    if scheme not in GGUF_SCHEMES or scheme in (*CONVERTED, Scheme.GGUF_MIXED):
        return None
    return Mix(
        file_type=scheme.type_name.upper(), head=_HEADS.get(scheme, "Q5_K" if _is_tiny(scheme) else "Q6_K")
    )


def needs_imatrix(scheme: Scheme) -> bool:
    """Tell whether llama.cpp refuses the scheme without an importance matrix (llama-quant.cpp)."""
    return _is_tiny(scheme) or scheme is Scheme.GGUF_Q2_K_S


_HEADS: Mapping[Scheme, str] = {Scheme.GGUF_Q8_0: "Q8_0"}


def _is_tiny(scheme: Scheme) -> bool:
    return scheme.type_name.startswith(("iq1", "iq2")) or scheme is Scheme.GGUF_IQ3_XXS
