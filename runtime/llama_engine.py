"""llama.cpp through its C functions, without the layers that make the Python binding slow.

The binding's high-level class copies logits into Python lists and re-checks its state at each token. Here the logits
are a numpy view on llama.cpp's own buffer, and `llama_step` does what is done once a token.

Everything that changes speed, memory or arithmetic is set here or by `LlamaOptions`, and reported in `settings`. What
the options default to, and what is always so:

- flash attention on: on a CPU it is one fused operator, with less memory for the scores;
- no memory map: the CPU backend repacks quantized weights into its own buffers, and with a map the pages of
  the original would stay resident beside them;
- repacking off where llama.cpp was built with AMX: GCC below 14 (unless patched) drops the stores that fill
  the tile configuration, and the first quantized prompt ends in a segmentation fault
  (github.com/ggml-org/llama.cpp/pull/26954);
- `n_outputs_max`: llama.cpp reserves logits for a whole batch of 512 positions otherwise (100 MB at 49,152
  tokens) although a chat reads one.

An encoder-decoder (T5) reads the prompt with `llama_encode`, the whole of it at once, so that the batch is as long as
the context; `llama_decode` then begins with the start token that the file names. llama.cpp keeps the encoder's output
in the context, and the next `llama_encode` replaces it.

llama.cpp's log is kept in memory and becomes part of the message when something fails.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ammd.errors import EngineError

from .chat_template import render_chat_template, render_source
from .closing import ClosesItself
from .engine import START_TOKEN, check_room
from .llama_options import LLAMA_DEFAULTS, LlamaOptions
from .llama_step import LlamaStep
from .llama_vocab import LlamaVocab
from .reads_texts import ReadsTexts

if TYPE_CHECKING:
    from .engine import Logits

_LOGITS_CHUNK_TOKENS = 64  # rows of logits that exist at once: 64 x 49,152 x 4 bytes = 12.6 MB
_LOG_LINES = 40
_ERROR_LEVELS = {3, 4}  # ggml's numbers for warning and error

_log: deque[tuple[int, str]] = deque(maxlen=_LOG_LINES)
_log_callback: Any = None  # llama.cpp keeps the pointer, so it must never be collected


class LlamaEngine(ReadsTexts, ClosesItself):
    """A GGUF in llama.cpp on the CPU. Implements `Engine`."""

    _tokenizer: LlamaVocab

    def __init__(
        self, path: Path, *, threads: int, context_tokens: int, options: LlamaOptions = LLAMA_DEFAULTS
    ) -> None:
        """Load the file.

        Raises:
            EngineError: llama-cpp-python is missing, or llama.cpp cannot load the file.
        """
        self._library = library = _load_library()
        self._model: Any = None
        self._context: Any = None
        self._batch: Any = None
        self._step: LlamaStep | None = None
        self._options = options
        self._repacking = b"AMX_INT8 = 1" not in library.llama_print_system_info()
        self.context_tokens = context_tokens
        self._batch_tokens, self._micro_batch_tokens = options.batch_tokens, options.micro_batch_tokens
        self._start_token: int | None = None  # of an encoder-decoder's target
        self.name = f"llama.cpp (llama-cpp-python {importlib.metadata.version('llama-cpp-python')})"
        try:
            self._model = self._load_model(path)
            if library.llama_model_has_encoder(self._model):
                self._start_token = self._read_start_token(path)
                self._batch_tokens = self._micro_batch_tokens = context_tokens
            self._context = self._make_context(path, threads)
        except EngineError:
            self.close()
            raise
        self._memory = library.llama_get_memory(self._context)
        self._tokenizer = LlamaVocab(library, library.llama_model_get_vocab(self._model))
        self.vocab_size = self._tokenizer.size
        self.bos_token_id = self._tokenizer.bos_token_id
        self.end_token_ids = self._tokenizer.end_token_ids
        self._batch = library.llama_batch_init(self._batch_tokens, 0, 1)
        for index in range(self._batch_tokens):
            self._batch.n_seq_id[index] = 1
            self._batch.seq_id[index][0] = 0
        self._step = LlamaStep(library, self._context, vocab_size=self.vocab_size)
        self._length = 0
        self._longest = context_tokens  # sequence that the cache may hold
        self.settings: Mapping[str, object] = {
            "threads": threads,
            "context_tokens": context_tokens,
            "batch_tokens": self._batch_tokens,
            "micro_batch_tokens": self._micro_batch_tokens,
            "flash_attention": options.flash_attention,
            "memory_map": options.memory_map,
            "weight_repacking": self._repacking,
            "kv_cache_type": options.kv_type.value,
            **({} if self._start_token is None else {START_TOKEN: self._start_token}),
        }

    def render_chat(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True
    ) -> str:
        """Return the chat as text, through the template stored in the file.

        Raises:
            EngineError: The file has no template, or it refuses these messages.
        """
        template: bytes | None = self._library.llama_model_chat_template(self._model, None)
        vocab = self._library.llama_model_get_vocab(self._model)
        end = self._library.llama_vocab_eos(vocab)
        end_text = self._tokenizer.special_text(None if end < 0 else end)
        if template is None:
            if self._start_token is None:
                raise EngineError("the GGUF stores no chat template")
            return render_source(messages, end_token=end_text)
        return render_chat_template(
            template.decode(),
            messages,
            special_tokens={
                "bos_token": self._tokenizer.special_text(self.bos_token_id),
                "eos_token": end_text,
            },
            add_generation_prompt=add_generation_prompt,
        )

    def prefill(self, token_ids: Sequence[int]) -> Logits:
        """Start a new sequence. Returns float32 [V] after the last token, valid until the next call.

        Raises:
            EngineError: No tokens, more than the context holds, or llama.cpp failed.
        """
        self._start(token_ids)
        if self._start_token is not None:
            token_ids = self._encode(token_ids)
        for start in range(0, len(token_ids), self._batch_tokens):
            chunk = token_ids[start : start + self._batch_tokens]
            self._run(chunk, outputs=1 if start + len(chunk) == len(token_ids) else 0)
        return self._open_step.row(-1)

    def decode(self, token_id: int) -> Logits:
        """Add one token. Returns float32 [V], valid until the next call.

        Raises:
            EngineError: The context is full, or llama.cpp failed.
        """
        if self._length >= self._longest:
            raise EngineError(f"the context of {self.context_tokens} tokens is full")
        step = self._open_step
        if status := step.run(token_id, self._length):
            self._check(status)
        self._length += 1
        return step.row(0)

    def logits(self, token_ids: Sequence[int], *, start: int = 0) -> Iterator[Logits]:
        """Give the logits after each token from `start` on, in chunks float32 [C, V] valid until the next.

        Raises:
            EngineError: No tokens, more than the context holds, or llama.cpp failed.
        """
        import numpy as np

        self._start(token_ids)
        if self._start_token is not None:
            source, target = token_ids[: start + 1], token_ids[start + 1 :]
            token_ids, start = [*self._encode(source), *target], 0
        for first in range(0, start, self._batch_tokens):
            self._run(token_ids[first : min(first + self._batch_tokens, start)], outputs=0)
        rows = min(_LOGITS_CHUNK_TOKENS, self._batch_tokens)
        for first in range(start, len(token_ids), rows):
            chunk = token_ids[first : first + rows]
            self._run(chunk, outputs=len(chunk))
            # The rows lie one after another in llama.cpp's buffer, in the order of the batch.
            row = self._library.llama_get_logits_ith(self._context, 0)
            yield np.ctypeslib.as_array(row, shape=(len(chunk), self.vocab_size))

    def close(self) -> None:
        """Release the model."""
        if self._step is not None:
            self._step.close()
        if self._batch is not None:
            self._library.llama_batch_free(self._batch)
        if self._context is not None:
            self._library.llama_free(self._context)
        if self._model is not None:
            self._library.llama_model_free(self._model)
        self._batch = self._step = self._context = self._model = None

    @property
    def _open_step(self) -> LlamaStep:
        assert self._step is not None, "the engine is closed"
        return self._step

    def _load_model(self, path: Path) -> Any:
        parameters = self._library.llama_model_default_params()
        parameters.n_gpu_layers = 0
        mode = "MMAP" if self._options.memory_map else "NONE"
        parameters.load_mode = getattr(self._library, f"LLAMA_LOAD_MODE_{mode}")
        parameters.use_extra_bufts = self._repacking
        model = self._library.llama_model_load_from_file(str(path).encode(), parameters)
        if not model:
            raise EngineError(f"llama.cpp cannot load `{path}`: {_last_log()}", path=str(path))
        return model

    def _read_start_token(self, path: Path) -> int:
        token: int = self._library.llama_model_decoder_start_token(self._model)
        if token < 0:
            raise EngineError(
                f"`{path}` does not say which token its decoder begins with",
                hint="convert it again with a newer converter",
                path=str(path),
            )
        return token

    def _make_context(self, path: Path, threads: int) -> Any:
        parameters = self._library.llama_context_default_params()
        parameters.n_ctx = self.context_tokens
        parameters.n_batch = self._batch_tokens
        parameters.n_ubatch = self._micro_batch_tokens
        parameters.n_outputs_max = _LOGITS_CHUNK_TOKENS
        parameters.n_threads = parameters.n_threads_batch = threads
        flash = "ENABLED" if self._options.flash_attention else "DISABLED"
        parameters.flash_attn_type = getattr(self._library, f"LLAMA_FLASH_ATTN_TYPE_{flash}")
        kv_type = getattr(self._library, f"GGML_TYPE_{self._options.kv_type.name}")
        parameters.type_k = parameters.type_v = kv_type
        context = self._library.llama_init_from_model(self._model, parameters)
        if not context:
            raise EngineError(
                f"llama.cpp cannot make a context of {self.context_tokens} tokens for `{path}`: "
                f"{_last_log()}",
                path=str(path),
            )
        return context

    def _start(self, token_ids: Sequence[int]) -> None:
        check_room(token_ids, context_tokens=self.context_tokens)
        self._library.llama_memory_clear(self._memory, False)
        self._length = 0

    def _encode(self, source: Sequence[int]) -> Sequence[int]:
        """Read an encoder-decoder's source and return what its target begins with."""
        assert self._start_token is not None
        self._fill_batch(source, outputs=len(source))
        self._check(self._library.llama_encode(self._context, self._batch), call="llama_encode")
        # Source and target together fill the context; the start token is in neither.
        self._longest = self.context_tokens - len(source) + 1
        return (self._start_token,)

    def _run(self, token_ids: Sequence[int], *, outputs: int) -> None:
        """Decode a batch and keep logits for its last `outputs` tokens."""
        self._fill_batch(token_ids, outputs=outputs)
        self._check(self._library.llama_decode(self._context, self._batch))
        self._length += len(token_ids)

    def _fill_batch(self, token_ids: Sequence[int], *, outputs: int) -> None:
        batch = self._batch
        count = len(token_ids)
        batch.n_tokens = count
        for index, token_id in enumerate(token_ids):
            batch.token[index] = token_id
            batch.pos[index] = self._length + index
            batch.logits[index] = index >= count - outputs

    def _check(self, status: int, *, call: str = "llama_decode") -> None:
        if status:
            raise EngineError(f"{call} failed with status {status}: {_last_log()}")


def _load_library() -> Any:
    try:
        from llama_cpp import llama_cpp as library
    except (ImportError, OSError, RuntimeError) as exc:
        raise EngineError(
            f"llama.cpp cannot be used: {exc}", hint="pip install 'llama-cpp-python>=0.3.36,<0.4'"
        ) from exc
    global _log_callback
    if _log_callback is None:
        _log_callback = library.llama_log_callback(_keep_line)
        library.llama_backend_init()
    # Each time: whoever else uses the library in this process may have set its own.
    library.llama_log_set(_log_callback, ctypes.c_void_p(0))
    return library


def _keep_line(level: int, text: bytes | None, _user_data: object) -> None:
    _log.append((level, (text or b"").decode(errors="replace").rstrip()))


def _last_log() -> str:
    """Return llama.cpp's own words about the failure."""
    errors = [line for level, line in _log if level in _ERROR_LEVELS and line]
    return "; ".join(errors[-3:]) or "it gave no reason"
