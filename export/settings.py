"""Which files to make from a checkpoint: the `[export]` part of a recipe."""

from __future__ import annotations

from enum import StrEnum

from pydantic import field_validator

from ammd.settings import Settings


class Scheme(StrEnum):
    """A file format with its quantization; also the name of the artifact that it makes."""

    GGUF_F16 = "gguf-f16"
    GGUF_Q8_0 = "gguf-q8_0"
    GGUF_Q4_0 = "gguf-q4_0"
    GGUF_Q4_K_M = "gguf-q4_k_m"
    ONNX_INT4 = "onnx-int4"


class ExportSettings(Settings):
    """What the export stage makes."""

    schemes: tuple[Scheme, ...] = tuple(Scheme)
    """The files to make: at least one, each at most once."""

    @field_validator("schemes")
    @classmethod
    def _check_list(cls, schemes: tuple[Scheme, ...]) -> tuple[Scheme, ...]:
        if not schemes:  # not min_length: pydantic would add "too short" to every unknown name
            raise ValueError("name at least one scheme")
        if len(set(schemes)) != len(schemes):
            raise ValueError("a scheme is named twice")
        return schemes
