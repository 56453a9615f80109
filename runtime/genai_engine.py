"""onnxruntime-genai: the ONNX folder that its model builder writes, with the KV cache updated in place.

Two defaults of the library would spoil speed and memory. `max_length` defaults to the model's full context,
and its KV cache is taken at once, so it is set to the context that was asked for. The thread count is given
over the configuration's overlay, which leaves the files as they are.

`decode` appends one token and reads the logits, so that any sampler works; it costs what the library's own
greedy loop costs plus one copy of [V], the only way in which this API hands logits out.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ammd.errors import EngineError

from .closing import ClosesItself
from .engine import check_room

if TYPE_CHECKING:
    from .engine import Logits

_LOGITS_CHUNK_TOKENS = 64  # rows of logits that exist at once


class GenaiEngine(ClosesItself):
    """An ONNX folder in onnxruntime-genai on the CPU. Implements `Engine`."""

    def __init__(self, path: Path, *, threads: int, context_tokens: int) -> None:
        """Load the folder.

        Raises:
            EngineError: onnxruntime-genai is missing or cannot load the folder.
        """
        self._library = library = _load_library()
        self.context_tokens = context_tokens
        self.name = f"onnxruntime-genai {importlib.metadata.version('onnxruntime-genai')}"
        try:
            config = library.Config(str(path))
            config.overlay(json.dumps(_overlay(threads)))
            self._model = library.Model(config)
            self._tokenizer = library.Tokenizer(self._model)
            self._generator = self._make_generator()
            described = json.loads((path / "genai_config.json").read_text(encoding="utf-8"))["model"]
        except (RuntimeError, OSError, ValueError, KeyError) as exc:
            raise EngineError(f"onnxruntime-genai cannot load `{path}`: {exc}", path=str(path)) from exc
        self.vocab_size = int(described["vocab_size"])
        self.bos_token_id = described.get("bos_token_id")
        self.end_token_ids = frozenset(int(token) for token in self._tokenizer.eos_token_ids)
        self._length = 0
        # A cache that holds the window alone cannot go back to its beginning.
        self._can_rewind = "sliding_window" not in described["decoder"]
        self.settings: Mapping[str, object] = {
            "threads": threads,
            "context_tokens": context_tokens,
            "inter_op_threads": 1,
            "kv_cache_type": "f32",
            "kv_cache_in_place": True,
        }

    def tokenize(self, text: str, *, add_special: bool = False) -> list[int]:
        """Return token ids; special tokens in `text` are recognised."""
        self._tokenizer.update_options(add_special_tokens="true" if add_special else "false")
        return [int(token) for token in self._tokenizer.encode(text)]

    def detokenize(self, token_ids: Sequence[int]) -> str:
        """Return the text of `token_ids` without special tokens."""
        return str(self._tokenizer.decode(_int32(token_ids)))

    def text_stream(self) -> Callable[[int], str]:
        """Return a function from one token after another to the text that is complete."""
        stream = self._tokenizer.create_stream()
        return lambda token_id: str(stream.decode(token_id))

    def render_chat(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True
    ) -> str:
        """Return the chat as text, rendered by the library from the folder's template.

        Raises:
            EngineError: The folder has no template, or it refuses these messages.
        """
        document = json.dumps([dict(message) for message in messages], ensure_ascii=False)
        try:
            return str(
                self._tokenizer.apply_chat_template(document, add_generation_prompt=add_generation_prompt)
            )
        except RuntimeError as exc:
            raise EngineError(f"onnxruntime-genai cannot render this chat: {exc}") from exc

    def prefill(self, token_ids: Sequence[int]) -> Logits:
        """Start a new sequence. Returns float32 [V] after the last token.

        Raises:
            EngineError: No tokens, more than the context holds, or the library failed.
        """
        self._start(token_ids)
        return self._append(token_ids)

    def decode(self, token_id: int) -> Logits:
        """Add one token. Returns float32 [V].

        Raises:
            EngineError: The context is full, or the library failed.
        """
        if self._length >= self.context_tokens:
            raise EngineError(f"the context of {self.context_tokens} tokens is full")
        return self._append((token_id,))

    def logits(self, token_ids: Sequence[int], *, start: int = 0) -> Iterator[Logits]:
        """Give the logits after each token from `start` on, in chunks float32 [C, V].

        A graph that keeps only the last position (the builder can prune it so) is asked token by token.

        Raises:
            EngineError: No tokens, more than the context holds, or the library failed.
        """
        self._start(token_ids)
        if start:
            self._append(token_ids[:start])
        step, first = _LOGITS_CHUNK_TOKENS, start
        while first < len(token_ids):
            chunk = token_ids[first : first + step]
            last = self._append(chunk)
            rows = self._generator.get_output("logits")[0]
            if len(rows) == len(chunk):
                yield rows
            elif step == 1:
                yield last[None]
            else:  # pruned: take this chunk back and go on token by token
                self._generator.rewind_to(first)
                self._length, step = first, 1
                continue
            first += len(chunk)

    def close(self) -> None:
        """Release the model."""
        self._generator = self._tokenizer = self._model = None

    def _make_generator(self) -> Any:
        parameters = self._library.GeneratorParams(self._model)
        parameters.set_search_options(max_length=self.context_tokens, do_sample=False)
        return self._library.Generator(self._model, parameters)

    def _start(self, token_ids: Sequence[int]) -> None:
        check_room(token_ids, context_tokens=self.context_tokens)
        if self._can_rewind:
            self._generator.rewind_to(0)
        else:
            self._generator = self._make_generator()
        self._length = 0

    def _append(self, token_ids: Sequence[int]) -> Logits:
        try:
            self._generator.append_tokens(_int32(token_ids))
            logits: Logits = self._generator.get_logits()
        except RuntimeError as exc:
            raise EngineError(f"onnxruntime-genai failed: {exc}") from exc
        self._length += len(token_ids)
        return logits.reshape(-1)


def _overlay(threads: int) -> dict[str, object]:
    options = {"intra_op_num_threads": threads, "inter_op_num_threads": 1}
    return {"model": {"decoder": {"session_options": options}}}


def _int32(token_ids: Sequence[int]) -> Any:
    import numpy as np

    return np.asarray(token_ids, dtype=np.int32)


def _load_library() -> Any:
    try:
        import onnxruntime_genai
    except (ImportError, OSError) as exc:
        raise EngineError(
            f"onnxruntime-genai cannot be used: {exc}", hint="pip install onnxruntime-genai"
        ) from exc
    return onnxruntime_genai
