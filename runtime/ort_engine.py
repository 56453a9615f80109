"""onnxruntime by itself: graphs of standard operators, and the fused ones that onnxruntime-genai's builder writes.

The graph is all there is, so what a generation library decides is decided here and reported in `settings`:

- the cache in place where the graph allows it (`ort_cache`), else handed from step to step;
- long prompts in chunks: a graph that unembeds every position would make [T, V] logits larger than the model;
- no memory pattern: it is planned for each shape anew, and every token brings a new one;
- spinning threads, as onnxruntime and onnxruntime-genai have them: waking threads for each of some hundred operators
  costs more than the operators of a small model. They burn a core while they wait, for a fraction of a second;
- the memory arena, all graph optimizations and prepacked weights: onnxruntime's defaults.

Tokenizer and chat template are the folder's own (`folder_tokenizer`); neither transformers nor torch is imported.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ammd.errors import EngineError

from .closing import ClosesItself
from .engine import check_room
from .folder_tokenizer import FolderTokenizer
from .onnx_folder import OnnxFolder, read_onnx_folder
from .ort_cache import Cache, make_cache
from .ort_graph import Graph, read_graph
from .ort_session import (
    SESSION_SETTINGS,
    check_rows,
    check_tokens,
    library_failures,
    load_library,
    one_line,
    open_session,
)
from .reads_texts import ReadsTexts

if TYPE_CHECKING:
    from .engine import Logits

_LOGITS_CHUNK_TOKENS = 64  # rows of logits that are handed out at once
_PREFILL_TOKENS = 512  # of a prompt at once
_PREFILL_LOGITS_BYTES = 32 << 20  # that a prompt's chunk may make, where the graph unembeds every position
_CACHE_NAMES = {"float32": "f32", "float16": "f16"}


class OrtEngine(ReadsTexts, ClosesItself):
    """An ONNX folder in onnxruntime on the CPU. Implements `Engine`."""

    _tokenizer: FolderTokenizer

    def __init__(self, path: Path, *, threads: int, context_tokens: int) -> None:
        """Load the folder.

        Raises:
            ArtifactError: Configuration or tokenizer are missing or damaged.
            EngineError: onnxruntime is missing or cannot load the graph, or the graph is none that is known here.
        """
        self._library = load_library()
        self._failures = library_failures()
        self.context_tokens = context_tokens
        self.name = f"onnxruntime {importlib.metadata.version('onnxruntime')}"
        folder = read_onnx_folder(path)
        _check_context(folder, context_tokens)
        self._tokenizer = FolderTokenizer(path)
        self._session: Any = open_session(self._library, folder.graph, threads=threads)
        graph = read_graph(self._session, folder)
        self._cache: Cache | None = make_cache(
            self._library,
            self._session,
            graph,
            context_tokens=context_tokens,
            in_place=folder.shares_cache,
        )
        self._length = 0
        self._rows = _LOGITS_CHUNK_TOKENS if graph.keeps_all else 1
        self._prefill_tokens = _prefill_tokens(graph)
        self.vocab_size = graph.vocab_size
        bos, end = self._tokenizer.special_id("bos_token"), self._tokenizer.special_id("eos_token")
        self.bos_token_id = folder.bos_token_id if bos is None else bos
        self.end_token_ids = frozenset(folder.end_token_ids) | ({end} if end is not None else set())
        self.settings: Mapping[str, object] = {
            "threads": threads,
            "context_tokens": context_tokens,
            **SESSION_SETTINGS,
            "prefill_chunk_tokens": self._prefill_tokens,
            "kv_cache_type": _CACHE_NAMES[graph.cache_type],
            "kv_cache_in_place": folder.shares_cache,
        }

    def render_chat(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True
    ) -> str:
        """Return the chat as text, through the folder's template.

        Raises:
            EngineError: The folder has no template, or it refuses these messages.
        """
        return self._tokenizer.render_chat(messages, add_generation_prompt=add_generation_prompt)

    def prefill(self, token_ids: Sequence[int]) -> Logits:
        """Start a new sequence. Returns float32 [V] after the last token, valid until the next call.

        Raises:
            EngineError: No tokens, more than the context holds, or onnxruntime failed.
        """
        self._start(token_ids)
        return self._read(token_ids)

    def decode(self, token_id: int) -> Logits:
        """Add one token. Returns float32 [V], valid until the next call.

        Raises:
            EngineError: The context is full, or onnxruntime failed.
        """
        length = self._length
        if length >= self.context_tokens:
            raise EngineError(f"the context of {self.context_tokens} tokens is full")
        check_tokens((token_id,), vocab_size=self.vocab_size)
        try:
            logits: Logits = self._open_cache.step(token_id, length)
        except self._failures as exc:
            raise EngineError(f"onnxruntime failed: {one_line(exc)}") from exc
        self._length = length + 1
        return logits

    def logits(self, token_ids: Sequence[int], *, start: int = 0) -> Iterator[Logits]:
        """Give the logits after each token from `start` on, in chunks float32 [C, V] valid until the next.

        A graph that keeps only the last position is asked token by token.

        Raises:
            EngineError: No tokens, more than the context holds, or onnxruntime failed.
        """
        self._start(token_ids)
        if start:
            self._read(token_ids[:start])
        first = start
        while first < len(token_ids):
            chunk = token_ids[first : first + self._rows]
            rows = self._append(chunk)
            if len(rows) < len(chunk):  # it keeps the last position without declaring so: start again
                self._rows, self._length = 1, 0
                if first:
                    self._read(token_ids[:first])
                continue
            yield rows
            first += len(chunk)

    def close(self) -> None:
        """Release the model."""
        self._cache = self._session = None

    @property
    def _open_cache(self) -> Cache:
        assert self._cache is not None, "the engine is closed"
        return self._cache

    def _start(self, token_ids: Sequence[int]) -> None:
        check_room(token_ids, context_tokens=self.context_tokens)
        self._length = 0

    def _read(self, token_ids: Sequence[int]) -> Logits:
        """Append tokens in chunks and return the logits of the last one."""
        for first in range(0, len(token_ids), self._prefill_tokens):
            rows = self._append(token_ids[first : first + self._prefill_tokens])
        last: Logits = rows[-1].copy()  # the rows before it are not kept for its sake
        return last

    def _append(self, token_ids: Sequence[int]) -> Logits:
        import numpy as np

        check_tokens(token_ids, vocab_size=self.vocab_size)
        try:
            rows = self._open_cache.extend(np.asarray([token_ids]), self._length)
        except self._failures as exc:
            raise EngineError(f"onnxruntime failed: {one_line(exc)}") from exc
        check_rows(rows, vocab_size=self.vocab_size)
        self._length += len(token_ids)
        return rows


def _prefill_tokens(graph: Graph) -> int:
    if not graph.keeps_all:
        return _PREFILL_TOKENS
    return max(1, min(_PREFILL_TOKENS, _PREFILL_LOGITS_BYTES // (4 * graph.vocab_size)))


def _check_context(folder: OnnxFolder, context_tokens: int) -> None:
    """Refuse a context that a fused graph's table of rotations does not reach; standard ones compute theirs."""
    if folder.shares_cache and folder.context_tokens and context_tokens > folder.context_tokens:
        raise EngineError(
            f"a context of {context_tokens} tokens is more than the {folder.context_tokens} "
            f"that `{folder.graph}` was made for",
            hint="ask for a smaller context",
            path=str(folder.graph),
            context_tokens=folder.context_tokens,
        )
