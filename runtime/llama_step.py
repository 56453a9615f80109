"""One token at a time through llama.cpp, with as little Python between two of them as can be.

A token streams all weights through the caches, so Python that runs once a token finds nothing of its own there: a dozen
lines cost 35 microseconds, and the next token begins slower by as much again, because llama.cpp's other threads spin
meanwhile. So a batch of one token is made once, with what never changes in it, and only token and position are written;
the functions are looked up once; and the address of the logits comes back as a number, from which the numpy view is
made anew only when the buffer has moved.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .engine import Logits


@dataclass(frozen=True, slots=True, kw_only=True)
class _Calls:
    """The two functions of a token."""

    decode: Callable[[Any, Any], int]  # context, batch -> status
    row_address: Callable[[Any, int], int | None]  # context, row of the last outputs -> float32 [V]


class LlamaStep:
    """The step from one token to the next, in one sequence."""

    def __init__(self, library: Any, context: Any, *, vocab_size: int) -> None:
        """Make the batch."""
        row = ctypes.cast(library.llama_get_logits_ith, ctypes.c_void_p).value
        assert row is not None
        as_number = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32)
        self._calls = _Calls(decode=library.llama_decode, row_address=as_number(row))
        self._free = library.llama_batch_free
        self._context = context
        self._vocab_size = vocab_size
        self._batch = batch = library.llama_batch_init(1, 0, 1)
        batch.n_tokens = 1
        batch.n_seq_id[0] = 1
        batch.seq_id[0][0] = 0
        batch.logits[0] = 1
        self._token, self._position = batch.token, batch.pos
        self._address: int | None = 0
        self._view: Logits

    def run(self, token_id: int, position: int) -> int:
        """Compute a token. Returns llama.cpp's status, 0 where all is well."""
        self._token[0] = token_id
        self._position[0] = position
        return self._calls.decode(self._context, self._batch)

    def row(self, index: int) -> Logits:
        """Return a view, float32 [V], on a row of the last outputs; valid until the next call."""
        address = self._calls.row_address(self._context, index)
        if address != self._address:
            self._view = self._look(address)
            self._address = address
        return self._view

    def close(self) -> None:
        """Release the batch."""
        self._free(self._batch)

    def _look(self, address: int | None) -> Logits:
        import numpy as np

        pointer = ctypes.cast(ctypes.c_void_p(address), ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(pointer, shape=(self._vocab_size,))
