"""Settings of the trimmed vocabulary, as the recipe's `[prepare.vocabulary]` gives them."""

from __future__ import annotations

from pydantic import Field, field_validator

from ammd.settings import Settings

from .alphabets import LANGUAGES


class VocabularySettings(Settings):
    """Which tokens teacher and student keep; an empty table keeps what the training data uses.

    Special tokens and single bytes always stay, and whatever a kept token is merged from.
    """

    texts: tuple[str, ...] = ()
    """Further files whose tokens are kept: JSONL in the form of `prompts`, or plain text under any other name."""
    languages: tuple[str, ...] = ()
    """Keep also each token that is spelled in the letters of one of these languages (ISO 639-1, as `en`)."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Keep at most this many, the most frequent; text that used others is spelled in more tokens."""

    @field_validator("languages")
    @classmethod
    def _are_known(cls, languages: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := sorted(set(languages) - set(LANGUAGES)):
            raise ValueError(f"no alphabet for `{unknown[0]}`, known are {', '.join(LANGUAGES)}")
        return languages
