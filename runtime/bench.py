"""The bench stage: load time, first token, tokens a second and peak memory of each model.

Each model and thread count is measured in a fresh process while this one sleeps. A row holds medians with
their spread and the raw samples. Rates are what a user gets from this project's engine, the choice of the
likeliest token included; text output is not.

A model's record is the row with the most threads; `rows` holds all of them.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ammd.artifact import write_json
from ammd.machine import available_cores, describe_machine
from ammd.progress import progress

from .artifact_ref import ArtifactRef
from .child import call
from .settings import BenchSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchInputs:
    """What is measured."""

    artifacts: tuple[ArtifactRef, ...]  # exported files, and checkpoints where a comparison is wanted


def run(inputs: BenchInputs, settings: BenchSettings, folder: Path) -> dict[str, Any]:
    """Measure every model at every thread count and write `bench.json`.

    Raises:
        ArtifactError: A model is missing.
        EngineError: A model cannot be loaded or run, or its process was killed.
    """
    bench = measure_artifacts(inputs.artifacts, settings)
    write_json(folder / "bench.json", bench)
    return {"bench": bench, "machine": describe_machine()}


def measure_artifacts(artifacts: Sequence[ArtifactRef], settings: BenchSettings) -> dict[str, Any]:
    """Return a record for each model.

    Raises:
        ArtifactError: A model is missing.
        EngineError: A model cannot be loaded or run, or its process was killed.
    """
    for artifact in artifacts:
        _ = artifact.kind  # a missing one, or one that the engine cannot run, is reported before any work
    counts = thread_counts(settings.threads, available=available_cores())
    bench: dict[str, Any] = {}
    with progress("bench", len(artifacts) * len(counts)) as report:
        for done, artifact in enumerate(artifacts):
            rows = []
            for place, threads in enumerate(counts):
                report(done * len(counts) + place, f"{artifact.name}, {threads} threads")
                request = settings.model_dump() | {
                    "path": str(artifact.path),
                    "engine": artifact.kind.value,
                    "threads": threads,
                }
                rows.append(summarize(call("bench_child:measure", request), settings, threads=threads))
            bench[artifact.name] = {**rows[-1], "rows": rows}
        report(len(artifacts) * len(counts))
    return bench


def thread_counts(asked: Sequence[int], *, available: int) -> tuple[int, ...]:
    """Return the counts to measure, ascending: 0 means all, and more than there are is never measured."""
    return tuple(sorted({min(count or available, available) for count in asked}))


def summarize(sample: Mapping[str, Any], settings: BenchSettings, *, threads: int) -> dict[str, Any]:
    """Return one flat row from a child's raw times."""
    tokens = sorted(seconds for one in sample["token_s"] for seconds in one)
    prefill = [settings.prompt_tokens / seconds for seconds in sample["prefill_s"]]
    decode = [len(one) / sum(one) for one in sample["token_s"]]
    return {
        "engine": sample["engine"],
        "threads": threads,
        "prompt_tokens": settings.prompt_tokens,
        "decode_tokens": settings.decode_tokens,
        "repetitions": settings.repetitions,
        "warmup": settings.warmup,
        "load_s": sample["load_s"],
        **spread("ttft_s", sample["ttft_s"]),
        **spread("prefill_tokens_per_s", prefill),
        **spread("decode_tokens_per_s", decode),
        "token_p50_s": percentile(tokens, 50),
        "token_p95_s": percentile(tokens, 95),
        "peak_rss_bytes": sample["peak_rss_bytes"],
        "rss_anon_bytes": sample["rss_anon_bytes"],
        "idle_rss_bytes": sample["idle_rss_bytes"],
        "settings": sample["settings"],
        "samples": {
            "ttft_s": sample["ttft_s"],
            "prefill_tokens_per_s": prefill,
            "decode_tokens_per_s": decode,
        },
    }


def spread(name: str, values: Sequence[float]) -> dict[str, float]:
    """Return median, median absolute deviation, minimum and maximum under names that start with `name`."""
    median = statistics.median(values)
    return {
        name: median,
        f"{name}_mad": statistics.median(abs(value - median) for value in values),
        f"{name}_min": min(values),
        f"{name}_max": max(values),
    }


def percentile(ordered: Sequence[float], percent: int) -> float:
    """Return the smallest value that at least `percent` per cent of the ascending `ordered` do not exceed."""
    place = -(-len(ordered) * percent // 100)
    return ordered[max(place, 1) - 1]
