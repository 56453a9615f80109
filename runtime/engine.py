"""One interface over four engines: torch, llama.cpp, onnxruntime-genai and onnxruntime by itself.

An engine holds one model and one sequence. `prefill` starts the sequence, `decode` adds a token; both give
the logits that choose the next token. Nothing here samples: `generate` does, so that every engine is driven
by the same code and differs only in its arithmetic. Engines load nothing at import, and a process that opens
another engine than torch never imports torch, whose thread pool would disturb what is measured.

An encoder-decoder (T5) has the same interface. Its prompt is the source, end token included: `prefill` encodes it and
gives the logits after the decoder's start token, `decode` adds a token to the target, and in `logits` what stands up to
`start` is the source and what follows the target, with the start token before it. So whoever compares models on prompt
and response need not know which kind they are; `START_TOKEN` in its settings tells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from ammd.errors import EngineError

from .artifact_ref import EngineKind, choose_kind
from .llama_options import LLAMA_DEFAULTS, LlamaOptions
from .onnx_folder import has_encoder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Logits = NDArray[np.float32]

START_TOKEN = "decoder_start_token_id"  # of an encoder-decoder, in its engine's settings


class Engine(Protocol):
    """A loaded model with one running sequence. T tokens, V vocabulary."""

    name: str  # library and version
    vocab_size: int
    context_tokens: int  # longest sequence it was opened for
    bos_token_id: int | None
    end_token_ids: frozenset[int]  # tokens that end a response, as the file itself says
    settings: Mapping[str, object]  # what is in effect: threads, cache type, flash attention, ...

    def tokenize(self, text: str, *, add_special: bool = False) -> list[int]:
        """Return token ids; special tokens in `text` are recognised.

        Args:
            text: Plain or rendered text.
            add_special: Let the tokenizer add its own BOS (rendered chats carry theirs in the text).
        """

    def detokenize(self, token_ids: Sequence[int]) -> str:
        """Return the text of `token_ids` without special tokens."""

    def text_stream(self) -> Callable[[int], str]:
        """Return a function that takes one token after another and gives the text that is complete.

        A character whose bytes are spread over several tokens appears with its last one.
        """

    def render_chat(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True
    ) -> str:
        """Return the chat as text, through the template stored with the model.

        An encoder-decoder without a template reads the user's last message, the end token behind it.

        Raises:
            EngineError: The model has no template, or it refuses these messages.
        """

    def prefill(self, token_ids: Sequence[int]) -> Logits:
        """Start a new sequence. Returns float32 [V] after the last token, valid until the next call.

        The array may be a view on the engine's own memory: copy it to keep it, and never read it after
        `close`.

        Raises:
            EngineError: No tokens, more than the context holds, or the library failed.
        """

    def decode(self, token_id: int) -> Logits:
        """Add one token. Returns float32 [V], valid until the next call.

        Raises:
            EngineError: The context is full, or the library failed.
        """

    def logits(self, token_ids: Sequence[int], *, start: int = 0) -> Iterator[Logits]:
        """Give the logits after token `start` and each later one, in chunks float32 [C, V].

        Chunks keep memory small: [T, V] of one long text would be larger than the model. A chunk is valid
        until the next one. Starts a new sequence; what precedes `start` is read without unembedding it.

        Raises:
            EngineError: No tokens, more than the context holds, or the library failed.
        """

    def close(self) -> None:
        """Release the model; the engine cannot be used after that."""

    def __enter__(self) -> Self:
        """Return itself."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""


def open_engine(
    path: Path,
    *,
    threads: int,
    context_tokens: int,
    kind: EngineKind | None = None,
    llama: LlamaOptions = LLAMA_DEFAULTS,
) -> Engine:
    """Load the model at `path`.

    Args:
        path: A GGUF, an ONNX folder or a checkpoint folder.
        threads: CPU threads, for prefill and decode alike.
        context_tokens: Longest prompt plus response; memory for it is taken at once.
        kind: The engine; None for the one that the form of `path` calls for.
        llama: What llama.cpp is told, should it be the engine.

    Raises:
        ArtifactError: Nothing is there, or no engine knows the form.
        EngineError: The engine's library is missing or cannot load the file, or it is the wrong one for this form.
    """
    kind = choose_kind(path, kind)
    if kind is EngineKind.LLAMA_CPP:
        from .llama_engine import LlamaEngine

        return LlamaEngine(path, threads=threads, context_tokens=context_tokens, options=llama)
    if kind is EngineKind.ONNX_GENAI:
        from .genai_engine import GenaiEngine

        return GenaiEngine(path, threads=threads, context_tokens=context_tokens)
    if kind is EngineKind.ONNX_RUNTIME and has_encoder(path):
        from .ort_seq2seq_engine import OrtSeq2SeqEngine

        return OrtSeq2SeqEngine(path, threads=threads, context_tokens=context_tokens)
    if kind is EngineKind.ONNX_RUNTIME:
        from .ort_engine import OrtEngine

        return OrtEngine(path, threads=threads, context_tokens=context_tokens)
    from .torch_engine import TorchEngine

    return TorchEngine(path, threads=threads, context_tokens=context_tokens)


def check_room(token_ids: Sequence[int], *, context_tokens: int) -> None:
    """Refuse an empty sequence and one that the context cannot hold.

    Raises:
        EngineError: Either of them, with both numbers.
    """
    if not token_ids:
        raise EngineError("an empty prompt has no next token")
    if len(token_ids) > context_tokens:
        raise EngineError(
            f"{len(token_ids)} tokens do not fit into a context of {context_tokens}",
            hint="shorten the prompt or ask for a larger context",
            tokens=len(token_ids),
            context_tokens=context_tokens,
        )
