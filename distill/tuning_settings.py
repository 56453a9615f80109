"""Settings of the teacher's fine-tuning."""

from __future__ import annotations

from pydantic import Field

from ammd.settings import Settings


class Tuning(Settings):
    """The teacher learns the responses given in the data before it teaches: cross-entropy on all of its weights."""

    steps: int = Field(default=200, ge=1)
    """Optimizer steps."""
    lr: float = Field(default=1e-4, gt=0)
    """Highest learning rate of AdamW; rises over the first twentieth and ends at a tenth, by a cosine."""
    batch_size: int = Field(default=16, ge=1)
    """Sequences an optimizer step."""
    micro_batch_size: int | None = Field(default=None, ge=1)
    """Sequences whose activations exist at once; fewer take less memory and more time. Absent means all of a batch."""
