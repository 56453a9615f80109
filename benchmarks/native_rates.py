"""What the engines' own tools measure: llama-bench, and a loop that does nothing but call onnxruntime-genai.

Both run under the settings of our engine: same file, threads, prompt length, flash attention, batch, cache type,
loading and repacking. llama-bench is built, once into the user cache, from the source tree of the installed
llama-cpp-python with the flags of its wheel; its decode starts at the same depth as ours, behind a prompt of equal
length. onnxruntime-genai's benchmark script is not in its wheel, so the loop here stands for it and times what it
times: appending the prompt and the first token, then each token through the library's own greedy search.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ammd.runtime.llama_tools import run_command

METRICS = ("prefill_tokens_per_s", "decode_tokens_per_s")

Rates = dict[str, float]  # metric -> tokens a second
Settings = Mapping[str, Any]  # in effect in our engine


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """What both sides do in one process."""

    threads: int
    prompt_tokens: int
    decode_tokens: int
    repetitions: int


Measure = Callable[[Path, Protocol, Settings], Rates]


def llama_bench(binary: Path) -> Measure:
    """Return a function that measures with this llama-bench."""

    def measure(path: Path, protocol: Protocol, settings: Settings) -> Rates:
        same = {
            "-m": path,
            "-t": protocol.threads,
            "-r": protocol.repetitions,
            "-b": settings["batch_tokens"],
            "-ub": settings.get("micro_batch_tokens", settings["batch_tokens"]),
            "-fa": "on" if settings["flash_attention"] else "off",
            "-lm": "mmap" if settings["memory_map"] else "none",
            "--repack": int(settings["weight_repacking"]),
            "-ctk": settings["kv_cache_type"],
            "-ctv": settings["kv_cache_type"],
            "-o": "json",
        }
        prefill = {"-p": protocol.prompt_tokens, "-n": 0}
        decode = {"-p": 0, "-n": protocol.decode_tokens, "-d": protocol.prompt_tokens}
        return {
            metric: _llama_bench_rate(binary, same | test)
            for metric, test in zip(METRICS, (prefill, decode), strict=True)
        }

    return measure


def _llama_bench_rate(binary: Path, options: Mapping[str, object]) -> float:
    (row,) = json.loads(
        run_command([str(binary), *(str(part) for option in options.items() for part in option)])
    )
    return float(statistics.median(row["samples_ts"]))


def generate_tokens(generator: Any, tokens: int) -> int:
    """Let an onnxruntime-genai generator go on for so many tokens, or to its end; return how many there were."""
    count = 0
    while count < tokens and not generator.is_done():
        generator.generate_next_token()
        count += 1
    return count


def genai_loop(path: Path, protocol: Protocol, _settings: Settings) -> Rates:
    """Measure an ONNX folder with onnxruntime-genai's own greedy search in a fresh process."""
    request = json.dumps({"path": str(path), **asdict(protocol)})
    rates: Rates = json.loads(run_command([sys.executable, __file__, request]).splitlines()[-1])
    return rates


def genai_rates(request: Mapping[str, Any]) -> Rates:
    """Return the rates of the loop."""
    import numpy as np
    import onnxruntime_genai as genai

    from ammd.runtime.bench_child import PARAGRAPH

    config = genai.Config(request["path"])
    options = {"intra_op_num_threads": request["threads"], "inter_op_num_threads": 1}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
    model = genai.Model(config)
    prompt_tokens, decode_tokens = request["prompt_tokens"], request["decode_tokens"]
    ids = genai.Tokenizer(model).encode(PARAGRAPH * (prompt_tokens // 50 + 1))[:prompt_tokens]
    parameters = genai.GeneratorParams(model)
    # One token more than is decoded: a generator that has reached its length is done.
    parameters.set_search_options(max_length=prompt_tokens + decode_tokens + 1, do_sample=False)
    prefill, decode = [], []
    for _ in range(request["repetitions"] + 1):  # the first warms up
        generator = genai.Generator(model, parameters)
        started = time.perf_counter()
        generator.append_tokens(np.asarray(ids, dtype=np.int32))
        generator.generate_next_token()
        prefilled = time.perf_counter()
        count = generate_tokens(generator, decode_tokens)
        decode.append(count / (time.perf_counter() - prefilled))
        prefill.append(prompt_tokens / (prefilled - started))
    return dict(zip(METRICS, (statistics.median(prefill[1:]), statistics.median(decode[1:])), strict=True))


if __name__ == "__main__":
    print(json.dumps(genai_rates(json.loads(sys.argv[1]))))
