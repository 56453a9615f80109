"""Decode of our ONNX engines and of onnxruntime-genai's own loop in one process, turn by turn.

Two processes meet two machines: on a shared host a rate changes by some per cent from one second to the next, more
than is to be found. Here the three take turns of some dozen tokens, so that all meet the same machine. Each begins with
a prompt, which is not timed: by its end the threads of the one before have ceased to spin. The ratio of rates is the
median over the rounds.

    python benchmarks/alternation.py '{"path": ..., "rounds": 14, "tokens": 40, "threads": 1}'
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from native_rates import generate_tokens

from ammd.runtime.artifact_ref import EngineKind
from ammd.runtime.bench_child import PARAGRAPH
from ammd.runtime.engine import Engine, open_engine

_PROMPT_TOKENS = 128
NATIVE = "native"


def alternate(request: Mapping[str, Any]) -> dict[str, list[float]]:
    """Return seconds a token by round, of each engine and of the library's own loop; the first round warms up."""
    path, tokens = Path(request["path"]), request["tokens"]
    # One token more than is decoded: a generator that has reached its length is done.
    opening: dict[str, Any] = {"threads": request["threads"], "context_tokens": _PROMPT_TOKENS + tokens + 1}
    kinds = (EngineKind.ONNX_GENAI, EngineKind.ONNX_RUNTIME)
    with (
        open_engine(path, kind=kinds[0], **opening) as generation,
        open_engine(path, kind=kinds[1], **opening) as plain,
    ):
        ids = generation.tokenize(PARAGRAPH * 3)[:_PROMPT_TOKENS]
        turns: dict[str, Callable[[], float]] = {
            NATIVE: lambda: _library_turn(generation, ids, tokens),
            kinds[0].value: lambda: _our_turn(generation, ids, tokens),
            kinds[1].value: lambda: _our_turn(plain, ids, tokens),
        }
        seconds: dict[str, list[float]] = {name: [] for name in turns}
        for number in range(request["rounds"] + 1):
            names = list(turns) if number % 2 == 0 else list(turns)[::-1]
            for name in names:
                seconds[name].append(turns[name]())
        return {name: values[1:] for name, values in seconds.items()}


def _our_turn(engine: Engine, ids: list[int], tokens: int) -> float:
    token = int(engine.prefill(ids).argmax())
    started = time.perf_counter()
    for _ in range(tokens):
        token = int(engine.decode(token).argmax())
    return (time.perf_counter() - started) / tokens


def _library_turn(engine: Any, ids: list[int], tokens: int) -> float:
    import numpy as np

    generator = engine._make_generator()  # the same model, with the library's greedy search
    generator.append_tokens(np.asarray(ids, dtype=np.int32))
    generator.generate_next_token()
    started = time.perf_counter()
    count = generate_tokens(generator, tokens)
    return (time.perf_counter() - started) / count


def ratios(seconds: Mapping[str, list[float]], name: str) -> list[float]:
    """Return ours / native of the rates, by round."""
    return [native / ours for native, ours in zip(seconds[NATIVE], seconds[name], strict=True)]


if __name__ == "__main__":
    found = alternate(json.loads(sys.argv[1]))
    for engine in found:
        print(f"{engine}: {statistics.median(ratios(found, engine)):.3f} of native", file=sys.stderr)
    print(json.dumps(found))
