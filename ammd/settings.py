"""The base of every settings model: frozen, and an unknown key is an error. And a type that several of them have."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict


class Settings(BaseModel):
    """A part of a recipe. Each stage folder owns its own subclass; the recipe composes them."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def _check_pattern(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as exc:
        raise ValueError(f"is no regular expression: {exc}") from exc
    return pattern


Pattern = Annotated[str, AfterValidator(_check_pattern)]
"""A regular expression in Python's syntax."""
