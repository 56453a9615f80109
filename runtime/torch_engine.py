"""A checkpoint in torch: the yardstick for the other two engines, in float32 unless asked otherwise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ammd.errors import EngineError

from .chat_template import render_source
from .closing import ClosesItself
from .engine import START_TOKEN, check_room

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from .engine import Logits

_LOGITS_CHUNK_TOKENS = 64  # rows of logits that exist at once


class TorchEngine(ClosesItself):
    """A checkpoint folder in torch on the CPU. Implements `Engine`."""

    def __init__(self, path: Path, *, threads: int, context_tokens: int) -> None:
        """Load the checkpoint in float32.

        Raises:
            EngineError: transformers cannot load the folder.
        """
        import torch

        from ammd.encoder_decoder import is_encoder_decoder, start_token_id
        from ammd.kv_cache import cache_argument

        torch.set_num_threads(threads)
        self.model: Any = load_model(path)  # public: batched work needs more than one sequence
        self._tokenizer = load_tokenizer(path)
        self._cache: Any = None
        self._cache_name = cache_argument(self.model)
        self._start_token = start_token_id(self.model) if is_encoder_decoder(self.model) else None
        self._encoded: Any = None  # an encoder-decoder's source
        self._length = 0
        self.context_tokens = context_tokens
        self.name = f"torch {torch.__version__}"
        self.vocab_size = int(self.model.get_output_embeddings().weight.shape[0])
        self.bos_token_id: int | None = self._tokenizer.bos_token_id
        self.end_token_ids = end_token_ids(self.model, self._tokenizer)
        self.settings: Mapping[str, object] = {
            "threads": threads,
            "context_tokens": context_tokens,
            "dtype": "float32",
            **({} if self._start_token is None else {START_TOKEN: self._start_token}),
        }

    def pack(self) -> None:
        """Lay out weights as the CPU's kernels read them: faster, and the same but for rounding."""
        from ammd.packed_linear import pack_linears

        pack_linears(self.model)

    def tokenize(self, text: str, *, add_special: bool = False) -> list[int]:
        """Return token ids; special tokens in `text` are recognised."""
        return list(self._tokenizer(text, add_special_tokens=add_special)["input_ids"])

    def detokenize(self, token_ids: Sequence[int]) -> str:
        """Return the text of `token_ids` without special tokens."""
        return decode_text(self._tokenizer, token_ids)

    def text_stream(self) -> Callable[[int], str]:
        """Return a function from one token after another to the text that is complete."""
        from tokenizers.decoders import DecodeStream

        stream = DecodeStream(skip_special_tokens=True)
        backend = self._tokenizer.backend_tokenizer
        return lambda token_id: stream.step(backend, token_id) or ""

    def render_chat(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True
    ) -> str:
        """Return the chat as text, rendered by transformers.

        Raises:
            EngineError: The checkpoint has no template, or it refuses these messages.
        """
        if self._start_token is not None and not self._tokenizer.chat_template:
            return render_source(messages, end_token=self._tokenizer.eos_token)
        return render_chat(self._tokenizer, messages, add_generation_prompt=add_generation_prompt)

    def prefill(self, token_ids: Sequence[int]) -> Logits:
        """Start a new sequence. Returns float32 [V] after the last token.

        Raises:
            EngineError: No tokens, or more than the context holds.
        """
        self._start(token_ids)
        if self._start_token is not None:
            token_ids = self._encode(token_ids)
        return self._append(token_ids, keep=1).reshape(-1)

    def decode(self, token_id: int) -> Logits:
        """Add one token. Returns float32 [V].

        Raises:
            EngineError: The context is full.
        """
        if self._length >= self._longest:
            raise EngineError(f"the context of {self.context_tokens} tokens is full")
        return self._append((token_id,), keep=1).reshape(-1)

    def logits(self, token_ids: Sequence[int], *, start: int = 0) -> Iterator[Logits]:
        """Give the logits after each token from `start` on, in chunks float32 [C, V].

        Raises:
            EngineError: No tokens, or more than the context holds.
        """
        self._start(token_ids)
        if self._start_token is not None:
            source, target = token_ids[: start + 1], token_ids[start + 1 :]
            token_ids, start = [*self._encode(source), *target], 0
        if start:
            self._append(token_ids[:start], keep=1)
        for first in range(start, len(token_ids), _LOGITS_CHUNK_TOKENS):
            yield self._append(token_ids[first : first + _LOGITS_CHUNK_TOKENS], keep=0)

    def close(self) -> None:
        """Release the model."""
        self.model = self._cache = None

    def _start(self, token_ids: Sequence[int]) -> None:
        check_room(token_ids, context_tokens=self.context_tokens)
        self._cache = self._encoded = None
        self._length = 0
        self._longest = self.context_tokens

    def _encode(self, source: Sequence[int]) -> Sequence[int]:
        """Read an encoder-decoder's source and return what its target begins with."""
        import torch

        assert self._start_token is not None
        with torch.inference_mode():
            self._encoded = self.model.get_encoder()(input_ids=torch.tensor([list(source)]))
        # Source and target together fill the context; the start token is in neither.
        self._longest = self.context_tokens - len(source) + 1
        return (self._start_token,)

    def _append(self, token_ids: Sequence[int], *, keep: int) -> Logits:
        """Run the tokens and return float32 [keep, V], or [T, V] where `keep` is 0."""
        import torch

        ids = torch.tensor([list(token_ids)])
        if self._encoded is None:
            read: dict[str, Any] = {"input_ids": ids, "logits_to_keep": keep}
        else:
            read = {"encoder_outputs": self._encoded, "decoder_input_ids": ids}
        with torch.inference_mode():
            output = self.model(
                **read,
                use_cache=True,
                **{self._cache_name: self._cache},
            )
        self._cache = output[self._cache_name]
        self._length += len(token_ids)
        logits: Logits = output.logits[0, -keep:].float().numpy()
        return logits


def load_model(path: Path, *, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Load a language model in evaluation mode, in float32 unless another dtype is given.

    Raises:
        EngineError: transformers cannot load the folder.
    """
    import torch
    from transformers.utils import logging

    from ammd.encoder_decoder import load_language_model

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        return load_language_model(path, dtype=dtype or torch.float32)
    except (OSError, ValueError, KeyError) as exc:
        raise EngineError(f"transformers cannot load a model from `{path}`: {exc}", path=str(path)) from exc


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """Load a checkpoint's tokenizer.

    Raises:
        EngineError: transformers cannot load it.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError) as exc:
        raise EngineError(
            f"transformers cannot load a tokenizer from `{path}`: {exc}", path=str(path)
        ) from exc


def render_chat(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool
) -> str:
    """Return the chat as text, rendered by transformers.

    Raises:
        EngineError: The checkpoint has no template, or it refuses these messages.
    """
    import jinja2

    try:
        text: str = tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )
    except (ValueError, jinja2.TemplateError) as exc:
        raise EngineError(f"the chat template refuses these messages: {exc}") from exc
    return text


def decode_text(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> str:
    """Return the text of `token_ids` without special tokens."""
    text: str = tokenizer.decode(
        list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return text


def end_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return every id that ends a response: the tokenizer's end token and the generation config's list."""
    configured = model.generation_config.eos_token_id if model.generation_config else None
    listed = configured if isinstance(configured, list) else [configured]
    return frozenset(int(token) for token in (tokenizer.eos_token_id, *listed) if token is not None)
