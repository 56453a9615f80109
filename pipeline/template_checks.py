"""The checks that a template may ask for: each gives an answer a score from 0 to 1, or none where it does not apply.

A closed set with parameters: what goes beyond it is a regular expression away (`matches`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from ammd.runtime.quality import each_rouge_l, ends_in_loop, repetition
from ammd.settings import Pattern, Settings

_FENCED = re.compile(r"```(?:json)?\s*\n(.*?)```", flags=re.DOTALL)
_ITEMS = {"bullet": r"^\s*[-*•]\s+\S", "numbered": r"^\s*\d+[.)]\s+\S", "any": r"^\s*(?:[-*•]|\d+[.)])\s+\S"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """One answer, and what it is judged by."""

    text: str
    ended: bool  # by the model itself
    expected: tuple[str, ...]  # of which one should occur; may be empty
    teacher_text: str | None  # None where no check looks at it


class _Check(Settings):
    """What all checks have."""

    name: str | None = None
    """What tables call it; its kind, with the category, where it is left out."""
    category: str | None = None
    """Only prompts of this category; all where it is left out."""
    max_worse: float = Field(default=0.1, ge=0, le=1)
    """How much lower than the baseline's the mean score may be."""
    at_least: float = Field(default=0.0, ge=0, le=1)
    """Lowest mean score, whatever the baseline's."""

    @property
    def label(self) -> str:
        """Its name in tables."""
        kind = getattr(self, "kind")  # noqa: B009 - each check declares its own
        return self.name or (f"{kind}, {self.category}" if self.category else str(kind))


class Expected(_Check):
    """One of the prompt's `expected` texts occurs, as whole words, whatever the case."""

    kind: Literal["expected"]

    def score(self, said: Said) -> float | None:
        """Return 1 or 0; None where nothing is expected."""
        if not said.expected:
            return None
        return float(
            any(re.search(rf"(?<!\w){re.escape(text)}(?!\w)", said.text, re.I) for text in said.expected)
        )


class NotEmpty(_Check):
    """Something is said."""

    kind: Literal["not_empty"]
    min_words: int = Field(default=1, ge=1)
    """Fewer count as nothing: an early stop."""

    def score(self, said: Said) -> float:
        """Return 1 or 0."""
        return float(len(said.text.split()) >= self.min_words)


class NoLoop(_Check):
    """The answer neither ends in a loop nor says much of it twice."""

    kind: Literal["no_loop"]
    max_repetition: float = Field(default=0.5, ge=0, le=1)
    """Highest share of 4-word sequences that occurred before."""

    def score(self, said: Said) -> float:
        """Return 1 or 0."""
        return float(not ends_in_loop(said.text) and repetition(said.text) <= self.max_repetition)


class Ends(_Check):
    """The model stops by itself within the template's `max_tokens`."""

    kind: Literal["ends"]

    def score(self, said: Said) -> float:
        """Return 1 or 0."""
        return float(said.ended)


class JsonText(_Check):
    """The answer, or the first fenced block in it, is a JSON object or list."""

    kind: Literal["json"]
    keys: tuple[str, ...] = ()
    """Keys that the object, or each object of the list, has."""

    def score(self, said: Said) -> float:
        """Return 1 or 0."""
        block = _FENCED.search(said.text)
        try:
            value = json.loads(block[1] if block else said.text)
        except (ValueError, RecursionError):
            return 0.0
        rows = value if isinstance(value, list) else [value]
        if not isinstance(value, dict | list):
            return 0.0
        return float(not self.keys or (bool(rows) and all(_has_keys(row, self.keys) for row in rows)))


class ListText(_Check):
    """The answer holds a list, one item a line."""

    kind: Literal["list"]
    style: Literal["bullet", "numbered", "any"] = "any"
    min_items: int = Field(default=2, ge=1)
    max_items: int | None = Field(default=None, ge=1)

    def score(self, said: Said) -> float:
        """Return 1 or 0."""
        items = len(re.findall(_ITEMS[self.style], said.text, flags=re.MULTILINE))
        return float(self.min_items <= items and (self.max_items is None or items <= self.max_items))


class Matches(_Check):
    """A regular expression is found."""

    kind: Literal["matches"]
    pattern: Pattern
    """In Python's syntax; `(?i)` at its beginning ignores case."""

    def score(self, said: Said) -> float:
        """Return 1 or 0."""
        return float(re.search(self.pattern, said.text) is not None)


class LikeTeacher(_Check):
    """How much of the teacher's answer is in it: ROUGE-L."""

    kind: Literal["like_teacher"]

    def score(self, said: Said) -> float:
        """Return ROUGE-L."""
        return each_rouge_l([said.text], [said.teacher_text or ""])[0]


class LengthOfTeacher(_Check):
    """As long as the teacher's answer, within a factor."""

    kind: Literal["length_of_teacher"]
    factor: float = Field(default=2.0, ge=1)

    def score(self, said: Said) -> float:
        """Return 1 or 0."""
        own, other = (len(text.split()) + 1 for text in (said.text, said.teacher_text or ""))
        return float(max(own, other) <= self.factor * min(own, other))


Check = Annotated[
    Expected | NotEmpty | NoLoop | Ends | JsonText | ListText | Matches | LikeTeacher | LengthOfTeacher,
    Field(discriminator="kind"),
]
NEED_TEACHER = (LikeTeacher, LengthOfTeacher)


def _has_keys(row: Any, keys: tuple[str, ...]) -> bool:
    return isinstance(row, Mapping) and all(key in row for key in keys)
