"""What engines with a tokenizer beside the model do in the same way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol


class Texts(Protocol):
    """A tokenizer beside the model."""

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        """See `Engine`."""

    def detokenize(self, token_ids: Sequence[int]) -> str:
        """See `Engine`."""

    def text_stream(self) -> Callable[[int], str]:
        """See `Engine`."""


class ReadsTexts:
    """Hands text on to its tokenizer."""

    _tokenizer: Texts

    def tokenize(self, text: str, *, add_special: bool = False) -> list[int]:
        """Return token ids; special tokens in `text` are recognised."""
        return self._tokenizer.tokenize(text, add_special=add_special)

    def detokenize(self, token_ids: Sequence[int]) -> str:
        """Return the text of `token_ids` without special tokens."""
        return self._tokenizer.detokenize(token_ids)

    def text_stream(self) -> Callable[[int], str]:
        """Return a function from one token after another to the text that is complete."""
        return self._tokenizer.text_stream()
