"""The tokenizer inside a GGUF, through llama.cpp's C functions."""

from __future__ import annotations

import codecs
import ctypes
from collections.abc import Callable, Sequence
from typing import Any

from ammd.errors import EngineError

_NO_TOKEN = -1  # llama.cpp's "this vocabulary has none"
_LONGEST_PIECE_BYTES = 256


class LlamaVocab:
    """Text to token ids and back, as the file itself defines it."""

    def __init__(self, library: Any, vocab: Any) -> None:
        self._library = library
        self._vocab = vocab
        self.size: int = library.llama_vocab_n_tokens(vocab)
        # Its pieces begin words with a space, and so does a text that it spells.
        self._drops_space: bool = library.llama_vocab_type(vocab) == library.LLAMA_VOCAB_TYPE_UGM
        bos: int = library.llama_vocab_bos(vocab)
        self.bos_token_id = None if bos == _NO_TOKEN else bos
        # llama.cpp adds tokens that it knows by name to the file's own end token; all of them end a response.
        self.end_token_ids = frozenset(
            token for token in range(self.size) if library.llama_vocab_is_eog(vocab, token)
        )

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        """Return token ids; special tokens in `text` are recognised.

        Raises:
            EngineError: llama.cpp cannot tokenize the text.
        """
        data = text.encode()
        room = len(data) + 2  # a token covers at least one byte; BOS and EOS come on top
        tokens = (ctypes.c_int32 * room)()
        count = self._library.llama_tokenize(self._vocab, data, len(data), tokens, room, add_special, True)
        if count < 0:
            raise EngineError(f"llama.cpp cannot tokenize a text of {len(data)} bytes")
        return list(tokens[:count])

    def piece(self, token_id: int) -> bytes:
        """Return the bytes that a token stands for; none for a special token."""
        return self._piece(token_id, special=False)

    def special_text(self, token_id: int | None) -> str:
        """Return how a special token is written, for chat templates; empty where there is no such token."""
        return "" if token_id is None else self._piece(token_id, special=True).decode(errors="replace")

    def detokenize(self, token_ids: Sequence[int]) -> str:
        """Return the text of `token_ids` without special tokens."""
        text = b"".join(map(self.piece, token_ids)).decode(errors="replace")
        return text.removeprefix(" ") if self._drops_space else text

    def text_stream(self) -> Callable[[int], str]:
        """Return a function from one token after another to the text that is complete."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        is_first = self._drops_space

        def read(token_id: int) -> str:
            nonlocal is_first
            text = decoder.decode(self.piece(token_id))
            if is_first and text:
                text, is_first = text.removeprefix(" "), False
            return text

        return read

    def _piece(self, token_id: int, *, special: bool) -> bytes:
        room = _LONGEST_PIECE_BYTES
        while True:
            buffer = ctypes.create_string_buffer(room)
            count = self._library.llama_token_to_piece(self._vocab, token_id, buffer, room, 0, special)
            if count >= 0:
                return buffer.raw[:count]
            room = -count  # the C function tells how much it needs
