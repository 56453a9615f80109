"""An encoder-decoder in onnxruntime: three graphs, as optimum exports them.

The first graph reads the source; the second takes the start token, what the first gave, and makes keys and values of
both; the third adds a token. Keys and values go from one step to the next without leaving onnxruntime; those of the
source stay what they are. Sessions are opened as in `ort_engine`, each with a copy of its own of the weights.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ammd.errors import EngineError

from .chat_template import render_source
from .closing import ClosesItself
from .engine import START_TOKEN, check_room
from .folder_tokenizer import FolderTokenizer
from .onnx_folder import DECODER, ENCODER, NEXT, read_onnx_folder
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
    import numpy as np
    from numpy.typing import NDArray

    from .engine import Logits

_LOGITS_CHUNK_TOKENS = 64  # rows of logits that are handed out at once
_IDS, _MASK, _SOURCE_MASK = "input_ids", "attention_mask", "encoder_attention_mask"
_STATES, _LOGITS = "encoder_hidden_states", "logits"
_PAST = re.compile(r"past_key_values\.\d+\.(encoder|decoder)\.(key|value)")


class OrtSeq2SeqEngine(ReadsTexts, ClosesItself):
    """A folder of three ONNX graphs in onnxruntime on the CPU. Implements `Engine`."""

    _tokenizer: FolderTokenizer

    def __init__(self, path: Path, *, threads: int, context_tokens: int) -> None:
        """Load the folder.

        Raises:
            ArtifactError: Configuration or tokenizer are missing or damaged.
            EngineError: onnxruntime is missing or cannot load a graph, or a graph has inputs that are not known here.
        """
        self._library = load_library()
        self._failures = library_failures()
        self.context_tokens = context_tokens
        self.name = f"onnxruntime {importlib.metadata.version('onnxruntime')}"
        folder = read_onnx_folder(path)
        if folder.start_token_id is None:
            raise EngineError(
                f"`{path}` does not say which token its decoder begins with",
                hint="set decoder_start_token_id in generation_config.json",
                path=str(path),
            )
        self._tokenizer = FolderTokenizer(path)
        self._sessions: dict[str, Any] = {
            name: open_session(self._library, path / name, threads=threads)
            for name in (ENCODER, DECODER, NEXT)
        }
        self._inputs = {
            name: [one.name for one in session.get_inputs()] for name, session in self._sessions.items()
        }
        self._outputs = {
            name: [one.name for one in session.get_outputs()] for name, session in self._sessions.items()
        }
        _check_inputs(self._inputs, path)
        self._start_token = folder.start_token_id
        self._fed: dict[str, Any] = {}  # of the third graph
        self._left = 0  # tokens that the context has room for
        self.vocab_size = folder.vocab_size
        self.bos_token_id = self._tokenizer.special_id("bos_token")
        end = self._tokenizer.special_id("eos_token")
        self.end_token_ids = frozenset(folder.end_token_ids) | ({end} if end is not None else set())
        self.settings: Mapping[str, object] = {
            "threads": threads,
            "context_tokens": context_tokens,
            **SESSION_SETTINGS,
            "kv_cache_type": "f32",
            "kv_cache_in_place": False,
            START_TOKEN: self._start_token,
        }

    def render_chat(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool = True
    ) -> str:
        """Return the chat as text, through the folder's template; without one, the last question and the end token.

        Raises:
            EngineError: The template refuses these messages.
        """
        if not self._tokenizer.has_template:
            return render_source(messages, end_token=self._tokenizer.special_text("eos_token"))
        return self._tokenizer.render_chat(messages, add_generation_prompt=add_generation_prompt)

    def prefill(self, token_ids: Sequence[int]) -> Logits:
        """Start a new sequence. Returns float32 [V] after the start token, valid until the next call.

        Raises:
            EngineError: No tokens, more than the context holds, or onnxruntime failed.
        """
        first: Logits = self._begin(token_ids, [])[-1]
        return first

    def decode(self, token_id: int) -> Logits:
        """Add one token to the target. Returns float32 [V], valid until the next call.

        Raises:
            EngineError: The context is full, or onnxruntime failed.
        """
        if not self._left:
            raise EngineError(f"the context of {self.context_tokens} tokens is full")
        rows = self._extend(token_id)
        self._left -= 1
        last: Logits = rows[-1]
        return last

    def logits(self, token_ids: Sequence[int], *, start: int = 0) -> Iterator[Logits]:
        """Give the logits after the start token and each token of the target, in chunks float32 [C, V].

        What stands up to `start` is the source.

        Raises:
            EngineError: No tokens, more than the context holds, or onnxruntime failed.
        """
        source, target = token_ids[: start + 1], token_ids[start + 1 :]
        check_room(token_ids, context_tokens=self.context_tokens)
        yield self._begin(source, target[: _LOGITS_CHUNK_TOKENS - 1])
        for token in target[_LOGITS_CHUNK_TOKENS - 1 :]:
            yield self._extend(token)

    def close(self) -> None:
        """Release the model."""
        self._sessions, self._fed = {}, {}

    def _begin(self, source: Sequence[int], target: Sequence[int]) -> Logits:
        """Read a source, the start token and the beginning of a target; return float32 [1 + T, V]."""
        import numpy as np

        check_room(source, context_tokens=self.context_tokens)
        check_tokens([*source, *target], vocab_size=self.vocab_size)
        mask = self._wrap(np.ones((1, len(source)), np.int64))
        (states,) = self._run(ENCODER, {_IDS: self._ids(source), _MASK: mask}).values()
        fed = {_IDS: self._ids([self._start_token, *target]), _STATES: states, _SOURCE_MASK: mask}
        found = self._run(DECODER, fed)
        self._fed = {_SOURCE_MASK: mask, _STATES: states} | _as_past(found)
        self._left = self.context_tokens - len(source) - len(target)
        return self._rows(found[_LOGITS])

    def _extend(self, token_id: int) -> Logits:
        """Add a token to the target and return float32 [1, V]."""
        check_tokens((token_id,), vocab_size=self.vocab_size)
        self._fed[_IDS] = self._ids([token_id])
        found = self._run(NEXT, self._fed)
        self._fed |= _as_past(found)
        return self._rows(found[_LOGITS])

    def _run(self, graph: str, fed: Mapping[str, Any]) -> dict[str, Any]:
        """Run a graph on what it takes of `fed`, and return all that it gives."""
        names = self._outputs[graph]
        try:
            found = self._sessions[graph].run_with_ort_values(
                names, {name: fed[name] for name in self._inputs[graph]}
            )
        except self._failures as exc:
            raise EngineError(f"onnxruntime failed: {one_line(exc)}") from exc
        return dict(zip(names, found, strict=True))

    def _ids(self, token_ids: Sequence[int]) -> Any:
        import numpy as np

        return self._wrap(np.array([token_ids], np.int64))

    def _wrap(self, array: NDArray[np.int64]) -> Any:
        return self._library.OrtValue.ortvalue_from_numpy(array)  # no copy: the value lies on the array

    def _rows(self, logits: Any) -> Logits:
        rows: Logits = logits.numpy()[0]
        check_rows(rows, vocab_size=self.vocab_size)
        return rows


def _as_past(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return a graph's keys and values as the third graph takes them."""
    return {
        name.replace("present", "past_key_values"): value for name, value in found.items() if name != _LOGITS
    }


def _check_inputs(inputs: Mapping[str, Sequence[str]], path: Path) -> None:
    """Refuse graphs with inputs that nothing is known of.

    Raises:
        EngineError: Names them.
    """
    known = {
        ENCODER: {_IDS, _MASK},
        DECODER: {_IDS, _SOURCE_MASK, _STATES},
        NEXT: {_IDS, _SOURCE_MASK, _STATES},
    }
    for graph, names in known.items():
        past = {name for name in inputs[graph] if graph == NEXT and _PAST.fullmatch(name)}
        if unknown := sorted(set(inputs[graph]) - names - past):
            raise EngineError(
                f"`{path / graph}` has inputs that are not known here: {', '.join(unknown)}",
                path=str(path / graph),
            )
