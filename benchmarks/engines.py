"""How close our engines come to the native ones: llama-bench, and a bare onnxruntime-genai loop.

Ours and native run in turn, each in a fresh process, in an order that alternates from round to round, so that
a slow minute of the machine hits both. A row holds the medians over the rounds, their spread and the ratio
ours / native. Same file, threads, prompt length, flash attention, cache type, loading and repacking on both
sides. llama-bench is built, once into the user cache, from the source tree of the installed llama-cpp-python
with the flags of its wheel. Native decode starts at the same depth as ours, behind a prompt of equal length.

Usage:
    python benchmarks/engines.py [--gguf FILE]... [--onnx FOLDER]   (default: the newest quickstart run)
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from document import ROOT, publish
from native import build_tool, run

from ammd.errors import AmmdError, ArtifactError
from ammd.machine import available_cores
from ammd.runtime.child import call

METRICS = ("prefill_tokens_per_s", "decode_tokens_per_s")

Rates = dict[str, float]  # metric -> tokens a second


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """What both sides do in one process."""

    threads: int
    prompt_tokens: int
    decode_tokens: int
    repetitions: int


def main() -> None:
    """Measure, write the result file, print it as one JSON line."""
    arguments = parse_arguments()
    if arguments.bare_genai:
        print(json.dumps(bare_genai_rates(json.loads(arguments.bare_genai))))
        return
    protocol = Protocol(
        threads=arguments.threads,
        prompt_tokens=arguments.prompt_tokens,
        decode_tokens=arguments.decode_tokens,
        repetitions=arguments.repetitions,
    )
    ggufs, onnx = arguments.gguf, arguments.onnx
    if not ggufs and not onnx:
        ggufs, onnx = newest_export()
    rows = []
    if ggufs:
        binary = build_tool("llama-bench")
        for path in ggufs:
            rows += compare(
                "llama.cpp", path, protocol, rounds=arguments.rounds, native=llama_bench(binary, path)
            )
    if onnx:
        rows += compare("onnxruntime-genai", onnx, protocol, rounds=arguments.rounds, native=bare_genai(onnx))
    publish("engines", rows)


def parse_arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description="Compare our engines with the native ones.")
    parser.add_argument("--gguf", type=Path, action="append", default=[], help="repeatable")
    parser.add_argument("--onnx", type=Path)
    parser.add_argument("--threads", type=int, default=available_cores())
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--decode-tokens", type=int, default=64)
    parser.add_argument("--repetitions", type=int, default=3, help="in one process")
    parser.add_argument("--rounds", type=int, default=7, help="fresh processes on either side")
    parser.add_argument("--bare-genai", help=argparse.SUPPRESS)
    return parser.parse_args()


def newest_export() -> tuple[list[Path], Path]:
    """Return the files of the newest quickstart run in `runs/`."""
    manifests = (ROOT / "runs" / "quickstart").glob("*/export/manifest.json")
    newest = max(manifests, key=lambda path: path.stat().st_mtime, default=None)
    if newest is None:
        raise ArtifactError("no quickstart run to measure", hint="run `ammd run`, or give --gguf and --onnx")
    return [newest.parent / "student-q8_0.gguf"], newest.parent / "onnx-int4"


def compare(
    engine: str,
    path: Path,
    protocol: Protocol,
    *,
    rounds: int,
    native: Callable[[Protocol, Mapping[str, Any]], Rates],
) -> list[dict[str, Any]]:
    """Return one row a metric from interleaved rounds of our engine and the native one."""
    _, settings = our_rates(path, protocol)  # reads the file into the page cache; tells what is in effect
    ours: list[Rates] = []
    theirs: list[Rates] = []
    for number in range(rounds):
        # The order alternates: whoever runs second may find a warmer, or a slower, machine.
        for mine in (True, False) if number % 2 == 0 else (False, True):
            if mine:
                ours.append(our_rates(path, protocol)[0])
            else:
                theirs.append(native(protocol, settings))
        print(f"{path.name}: round {number + 1} of {rounds}", file=sys.stderr)
    return [
        {
            "engine": engine,
            "artifact": path.name,
            "metric": metric,
            "threads": protocol.threads,
            "prompt_tokens": protocol.prompt_tokens,
            "decode_tokens": protocol.decode_tokens,
            "rounds": rounds,
            "ours": statistics.median(mine),
            "ours_min": min(mine),
            "ours_max": max(mine),
            "native": statistics.median(other),
            "native_min": min(other),
            "native_max": max(other),
            "ratio": statistics.median(mine) / statistics.median(other),
        }
        for metric in METRICS
        for mine, other in [([rates[metric] for rates in ours], [rates[metric] for rates in theirs])]
    ]


def our_rates(path: Path, protocol: Protocol) -> tuple[Rates, Mapping[str, Any]]:
    """Return our engine's rates from a fresh process, and its settings."""
    sample = call(
        "bench_child:measure",
        {
            "path": str(path),
            "threads": protocol.threads,
            "prompt_tokens": protocol.prompt_tokens,
            "decode_tokens": protocol.decode_tokens,
            "repetitions": protocol.repetitions,
            "warmup": 1,
        },
    )
    rates = {
        "prefill_tokens_per_s": protocol.prompt_tokens / statistics.median(sample["prefill_s"]),
        "decode_tokens_per_s": statistics.median(len(one) / sum(one) for one in sample["token_s"]),
    }
    return rates, sample["settings"]


def llama_bench(binary: Path, path: Path) -> Callable[[Protocol, Mapping[str, Any]], Rates]:
    """Return a function that measures `path` with llama-bench under the settings of our engine."""

    def measure(protocol: Protocol, settings: Mapping[str, Any]) -> Rates:
        same = {
            "-m": path,
            "-t": protocol.threads,
            "-r": protocol.repetitions,
            "-b": settings["batch_tokens"],
            "-ub": settings["batch_tokens"],
            "-fa": "on" if settings["flash_attention"] else "off",
            "-lm": "mmap" if settings["memory_map"] else "none",
            "--repack": int(settings["weight_repacking"]),
            "-ctk": settings["kv_cache_type"],
            "-ctv": settings["kv_cache_type"],
            "-o": "json",
        }
        prefill = {"-p": protocol.prompt_tokens, "-n": 0}
        decode = {"-p": 0, "-n": protocol.decode_tokens, "-d": protocol.prompt_tokens}
        return dict(
            zip(METRICS, (_llama_bench_rate(binary, same | test) for test in (prefill, decode)), strict=True)
        )

    return measure


def _llama_bench_rate(binary: Path, options: Mapping[str, object]) -> float:
    (row,) = json.loads(run([str(binary), *(str(part) for option in options.items() for part in option)]))
    return float(statistics.median(row["samples_ts"]))


def bare_genai(path: Path) -> Callable[[Protocol, Mapping[str, Any]], Rates]:
    """Return a function that measures `path` with the library's own greedy loop in a fresh process."""

    def measure(protocol: Protocol, _settings: Mapping[str, Any]) -> Rates:
        request = {
            "path": str(path),
            "threads": protocol.threads,
            "prompt_tokens": protocol.prompt_tokens,
            "decode_tokens": protocol.decode_tokens,
            "repetitions": protocol.repetitions,
        }
        output = run([sys.executable, __file__, "--bare-genai", json.dumps(request)])
        rates: Rates = json.loads(output.splitlines()[-1])
        return rates

    return measure


def bare_genai_rates(request: Mapping[str, Any]) -> Rates:
    """Return the rates of a loop that does nothing but call onnxruntime-genai."""
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
        count = 0
        while count < decode_tokens and not generator.is_done():
            generator.generate_next_token()
            count += 1
        decode.append(count / (time.perf_counter() - prefilled))
        prefill.append(prompt_tokens / (prefilled - started))
    return dict(zip(METRICS, (statistics.median(prefill[1:]), statistics.median(decode[1:])), strict=True))


if __name__ == "__main__":
    try:
        main()
    except AmmdError as error:
        sys.exit(f"{error}\nhint: {error.hint}" if error.hint else str(error))
