"""Where the time of a decoded token goes: in the engine's library, in choosing the token, and in our Python.

A stand-in before the library's object times the calls that do the work; what is left of `decode` is Python: filling
the batch, binding inputs, making the array. ctypes' and pybind's own conversions count as the library's.

    python benchmarks/token_parts.py '{"path": ..., "engine": ..., "threads": 2, "tokens": 200}'
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ammd.runtime.artifact_ref import EngineKind
from ammd.runtime.bench_child import PARAGRAPH
from ammd.runtime.engine import Engine, open_engine

_PROMPT_TOKENS = 128
_WARMUP_TOKENS = 16
# Where each engine keeps the object through which its library works, and the calls that do.
_WORK: Mapping[EngineKind, tuple[str, tuple[str, ...]]] = {
    EngineKind.LLAMA_CPP: ("_step._calls", ("decode", "row_address")),
    EngineKind.ONNX_GENAI: ("_generator", ("append_tokens", "get_logits")),
    EngineKind.ONNX_RUNTIME: ("_cache._session", ("run_with_iobinding",)),
}


class Timed:
    """An object whose named methods are timed."""

    def __init__(self, target: Any, methods: tuple[str, ...]) -> None:
        """Stand before `target`."""
        self._target = target
        self.seconds = 0.0
        for name in methods:
            setattr(self, name, self._timed(getattr(target, name)))

    def __getattr__(self, name: str) -> Any:
        """Pass on what is not timed."""
        return getattr(self._target, name)

    def _timed(self, method: Any) -> Any:
        def call(*arguments: Any) -> Any:
            started = time.perf_counter()
            result = method(*arguments)
            self.seconds += time.perf_counter() - started
            return result

        return call


def stand_before(engine: Engine, kind: EngineKind) -> Timed:
    """Put a timer before the library's object of `engine`."""
    place, methods = _WORK[kind]
    *way, last = place.split(".")
    holder: Any = engine
    for name in way:
        holder = getattr(holder, name)
    timed = Timed(getattr(holder, last), methods)
    setattr(holder, last, timed)
    return timed


def token_parts(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return medians over the tokens, in seconds, by part."""
    kind, tokens = EngineKind(request["engine"]), request["tokens"]
    context_tokens = _PROMPT_TOKENS + _WARMUP_TOKENS + tokens
    parts: list[tuple[float, float, float]] = []
    with open_engine(
        Path(request["path"]), threads=request["threads"], context_tokens=context_tokens, kind=kind
    ) as engine:
        ids = engine.tokenize(PARAGRAPH * 3)[:_PROMPT_TOKENS]
        token = int(engine.prefill(ids).argmax())
        timed = stand_before(engine, kind)
        for _ in range(_WARMUP_TOKENS + tokens):
            timed.seconds = 0.0
            started = time.perf_counter()
            logits = engine.decode(token)
            decoded = time.perf_counter()
            token = int(logits.argmax())
            chosen = time.perf_counter() - decoded
            parts.append((timed.seconds, decoded - started - timed.seconds, chosen))
        library, python, choice = (
            statistics.median(column) for column in zip(*parts[_WARMUP_TOKENS:], strict=True)
        )
        return {
            "vocab_size": engine.vocab_size,
            "library_s": library,
            "python_s": python,
            "choice_s": choice,
        }


if __name__ == "__main__":
    print(json.dumps(token_parts(json.loads(sys.argv[1]))))
