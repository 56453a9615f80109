"""The base of every settings model: frozen, and an unknown key is an error."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """A part of a recipe. Each stage folder owns its own subclass; the recipe composes them."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
