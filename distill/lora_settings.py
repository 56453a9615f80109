"""Settings of adapters, as the recipe's `[distill.lora]` gives them."""

from __future__ import annotations

from pydantic import Field

from ammd.settings import Settings


class Lora(Settings):
    """Low-rank adapters (LoRA), trained in the place of the student's own weights and merged when it is saved."""

    rank: int = Field(default=16, ge=1)
    """Of each adapter."""
    alpha: float = Field(default=32.0, gt=0)
    """An adapter counts by alpha / rank."""
