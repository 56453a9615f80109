"""Which files to make from a checkpoint: the `[export]` part of a recipe."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from ammd.byte_size import SizeText, parse_size
from ammd.settings import Settings

from .schemes import DEFAULT_SCHEMES, STANDARD_SCHEMES, Scheme, needs_imatrix


class ImatrixSettings(Settings):
    """Which inputs of each matrix matter, measured on text, so that quantizers round the others more."""

    texts: tuple[str, ...] = ()
    """Files to measure on: JSONL in the form of `prepare.prompts`, or plain text under any other name; absent takes
    the texts that the student was trained on."""
    max_tokens: int = Field(default=16384, ge=1)
    """Read at most this many tokens, from the front."""


class MixedSettings(Settings):
    """The budget of `gguf-mixed`, one of the three; within it each tensor gets the type that the model needs."""

    size: SizeText | None = None
    """Of the whole file, as `90 MB` or `85 MiB`."""
    bits: float | None = Field(default=None, gt=0)
    """Bits per weight, all tensors together."""
    max_kl: float | None = Field(default=None, gt=0)
    """Highest KL(checkpoint || file), in nats a token of the texts that the choice is measured on."""

    @property
    def size_bytes(self) -> int:
        """`size` as a number."""
        assert self.size is not None
        return parse_size(self.size)

    @model_validator(mode="after")
    def _is_one_budget(self) -> Self:
        if sum(value is not None for value in (self.size, self.bits, self.max_kl)) != 1:
            raise ValueError("name one of `size`, `bits` and `max_kl`")
        return self


class OnnxSettings(Settings):
    """How ONNX files are quantized, by onnxruntime-genai's builder and in `onnx-standard-int4`."""

    block_size: Literal[32, 64, 128] = 32
    """Weights of a row that share a scale; more make a smaller file that is further from the student."""
    algorithm: Literal["rtn", "k_quant", "mlas"] = "rtn"
    """`rtn` rounds to the nearest, `k_quant` searches each block's scale and takes twice the time, `mlas` is ONNX
    Runtime's rounding in C++, the builder's default: the nearest with symmetric blocks, else as `rtn` and faster."""
    symmetric: bool = False
    """Without zero points: a smaller file that is further from the student."""
    accuracy_level: Literal[0, 1, 2, 3, 4] = 4
    """Of activations in a product: 4 rounds them to int8, which is fastest on a CPU; 1 keeps float32; 0 leaves it to
    the runtime."""
    head: Literal["float32", "int8", "int4"] = "int8"
    """Of the output matrix in int4 files, and of an embedding that is tied to it; `float32` keeps it as it is."""
    sensitive_layers: Literal["int8", "int4"] = "int8"
    """In int4 files, of the matrices that llama.cpp's Q4_K_M keeps finer as well."""
    ort_format: bool = False
    """Write `model.ort` beside `model.onnx` in the `onnx-standard` folders: the one file that onnxruntime's reduced
    builds for phones read, less than 2 GiB. Not with `onnx-standard-fp16`."""


class ExportSettings(Settings):
    """What the export stage makes."""

    schemes: tuple[Scheme, ...] = DEFAULT_SCHEMES
    """The files to make: at least one, each at most once."""
    imatrix: ImatrixSettings | None = None
    """Measure an importance matrix and quantize all GGUF files with it; an empty table takes the defaults, absent makes
    none, and then the types that need one (IQ1, IQ2, IQ3_XXS, Q2_K_S) are refused."""

    mixed: MixedSettings | None = None
    """The budget of `gguf-mixed`."""
    onnx: OnnxSettings = OnnxSettings()
    """Of the ONNX files."""

    @property
    def reads_texts(self) -> bool:
        """Whether something is measured on the texts that the student was trained on."""
        named = self.imatrix is not None and bool(self.imatrix.texts)
        return not named and (self.imatrix is not None or self.mixed is not None)

    @field_validator("schemes")
    @classmethod
    def _check_list(cls, schemes: tuple[Scheme, ...]) -> tuple[Scheme, ...]:
        if not schemes:  # not min_length: pydantic would add "too short" to every unknown name
            raise ValueError("name at least one scheme")
        if len(set(schemes)) != len(schemes):
            raise ValueError("a scheme is named twice")
        return schemes

    @model_validator(mode="after")
    def _a_mixture_has_a_budget(self) -> Self:
        if (self.mixed is not None) != (Scheme.GGUF_MIXED in self.schemes):
            raise ValueError("the scheme `gguf-mixed` and a `mixed` table with its budget go together")
        return self

    @model_validator(mode="after")
    def _ort_format_has_a_use(self) -> Self:
        if not self.onnx.ort_format:
            return self
        if not set(self.schemes) & set(STANDARD_SCHEMES):
            raise ValueError("`onnx.ort_format` is for the `onnx-standard` schemes, none of which is named")
        # Casts for want of float16 kernels would be frozen into it: 10 instead of 24 tokens a second, twice the memory.
        if Scheme.ONNX_STANDARD_FP16 in self.schemes:
            raise ValueError("`onnx.ort_format` cannot be had of `onnx-standard-fp16`, leave one of them out")
        return self

    @model_validator(mode="after")
    def _tiny_types_have_a_matrix(self) -> Self:
        if self.imatrix is None and (needy := [scheme for scheme in self.schemes if needs_imatrix(scheme)]):
            raise ValueError(
                f"`{needy[0]}` cannot be made without an importance matrix, add an `imatrix` table"
            )
        return self
