"""The text of each token as bytes, so that tokens of two tokenizers can be compared.

Read from `tokenizer.json`, for the two families that spell every text in their tokens: byte-level BPE, which writes
bytes as letters of its own alphabet, and those of SentencePiece, which write a space as U+2581 and, some of them, a
byte as `<0x0A>`. Tokens of other families have no bytes here, and neither have special tokens: they are no text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SPACE = "\u2581"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBytes:
    """The bytes of a tokenizer's tokens."""

    of: Mapping[int, bytes]  # by id; a token that is no text is missing
    adds_space: bool  # a text's first token begins with a space that the text does not have

    def spelled(self, ids: Sequence[int]) -> list[bytes | None]:
        """Return the bytes of each token of a text, as the text has them; None where a token is no text."""
        found = [self.of.get(token_id) for token_id in ids]
        if self.adds_space and found and found[0] is not None:
            found[0] = found[0].removeprefix(b" ")
        return found


def token_bytes(tokenizer: PreTrainedTokenizerBase) -> TokenBytes:
    """Return the bytes of all tokens; of none for a tokenizer of another family."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    document: dict[str, Any] = json.loads(backend.to_str()) if backend is not None else {}
    steps = {step["type"]: step for step in _steps(document.get("decoder"))}
    added = {entry["id"]: entry for entry in document.get("added_tokens", ())}
    found: dict[int, bytes] = {}
    alphabet = _byte_alphabet() if "ByteLevel" in steps else None
    if alphabet is not None or "Metaspace" in steps or steps.get("Replace", {}).get("content") == " ":
        for token, token_id in tokenizer.get_vocab().items():
            if token_id in added:
                spelled = None if added[token_id]["special"] else token.encode()
            elif alphabet is not None:
                spelled = _of_letters(token, alphabet)
            else:
                spelled = _of_piece(token, has_bytes="ByteFallback" in steps)
            if spelled:
                found[token_id] = spelled
    first = found.get(next(iter(tokenizer.encode("a", add_special_tokens=False)), -1), b"")
    return TokenBytes(of=found, adds_space=first.startswith(b" "))


def _steps(decoder: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    if decoder is None:
        return
    if decoder["type"] == "Sequence":
        for one in decoder["decoders"]:
            yield from _steps(one)
    else:
        yield decoder


def _of_letters(token: str, alphabet: Mapping[str, int]) -> bytes | None:
    """Return the bytes that a byte-level token writes; None if it has a letter that stands for none."""
    return bytes(alphabet[letter] for letter in token) if alphabet.keys() >= set(token) else None


def _of_piece(token: str, *, has_bytes: bool) -> bytes:
    if has_bytes and (byte := _BYTE.fullmatch(token)):
        return bytes([int(byte[1], 16)])
    return token.replace(_SPACE, " ").encode()


def _byte_alphabet() -> dict[str, int]:
    """Return which letter stands for which byte: a visible one for itself, the others for U+0100 and on."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    hidden = [byte for byte in range(0x100) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {
        chr(0x100 + place): byte for place, byte in enumerate(hidden)
    }
