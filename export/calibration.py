"""Texts to measure on: conversations as the model sees them, or plain text in pieces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ammd.conversations import encode_response, read_conversations, render_prompt
from ammd.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PIECE_TOKENS = 512  # of plain text at once, as llama.cpp's own tool cuts it


def read_pieces(
    paths: Sequence[Path], tokenizer: PreTrainedTokenizerBase, *, max_tokens: int, context_tokens: int
) -> list[list[int]]:
    """Return token ids of the texts, from the front, `max_tokens` in all at most.

    Args:
        paths: JSONL of conversations, or plain text under any other suffix.
        tokenizer: The model's.
        max_tokens: In all pieces together.
        context_tokens: No piece is longer.

    Raises:
        DataError: A file cannot be read, or all of them hold nothing.
    """
    pieces: list[list[int]] = []
    room = max_tokens
    for path in paths:
        found = _conversations if path.suffix == ".jsonl" else _plain_text
        for ids in found(path, tokenizer):
            kept = ids[: min(room, context_tokens)]
            pieces.append(kept)
            room -= len(kept)
            if not room:
                return pieces
    if not pieces:
        raise DataError(f"{', '.join(f'`{path}`' for path in paths)} hold no text to measure on")
    return pieces


def _conversations(path: Path, tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
    for item in read_conversations(path):
        ids = list(render_prompt(tokenizer, item.messages))
        if item.response is not None:
            ids += encode_response(tokenizer, item.response, max_tokens=None)
        yield ids


def _plain_text(path: Path, tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise DataError(f"cannot read `{path}`: {exc}", path=str(path)) from exc
    ids = tokenizer.encode(text, add_special_tokens=False)
    for start in range(0, len(ids), PIECE_TOKENS):
        yield ids[start : start + PIECE_TOKENS]
