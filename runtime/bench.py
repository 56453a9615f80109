"""The bench stage: load time, first token, tokens a second and peak memory of each model.

Each model and thread count is measured in fresh processes while this one sleeps, in rounds: one process of each, then
the next of each, so that a machine that slows down does so for all. A row holds medians over all samples with their
spread and interval, and the raw samples by process. Rates are what a user gets from this project's engine, the choice
of the likeliest token included; text output is not.

A model's record is the row with the most threads; `rows` holds all of them, `file` says what was measured.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ammd.artifact import write_json
from ammd.machine import available_cores, describe_machine
from ammd.progress import progress

from .artifact_ref import ArtifactRef
from .bootstrap import median_interval
from .child import call
from .file_facts import describe_file
from .settings import BenchSettings

if TYPE_CHECKING:
    import numpy as np

_SEED = 0  # of the intervals
_PERCENTILES = (50, 90, 95, 99)


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
    cells = list(itertools.product(artifacts, counts))
    samples: dict[tuple[str, int], list[dict[str, Any]]] = {(one.name, threads): [] for one, threads in cells}
    total = len(cells) * settings.processes
    with progress("bench", total) as report:
        for done in range(total):
            artifact, threads = cells[done % len(cells)]
            report(done, f"{artifact.name}, {threads} threads")
            request = settings.model_dump() | {
                "path": str(artifact.path),
                "engine": artifact.kind.value,
                "threads": threads,
            }
            samples[artifact.name, threads].append(call("bench_child:measure", request))
        report(total)
    bench: dict[str, Any] = {}
    for artifact in artifacts:
        rows = [summarize(samples[artifact.name, threads], settings, threads=threads) for threads in counts]
        bench[artifact.name] = {**rows[-1], "rows": rows, "file": describe_file(artifact.path)}
    return bench


def thread_counts(asked: Sequence[int], *, available: int) -> tuple[int, ...]:
    """Return the counts to measure, ascending: 0 means all, and more than there are is never measured."""
    return tuple(sorted({min(count or available, available) for count in asked}))


def summarize(
    processes: Sequence[Mapping[str, Any]], settings: BenchSettings, *, threads: int
) -> dict[str, Any]:
    """Return one flat row from the raw times of one cell's children."""
    import numpy as np

    generator = np.random.default_rng(_SEED)
    samples = [_rates(one, settings) for one in processes]
    tokens = sorted(seconds for one in processes for run in one["token_s"] for seconds in run)
    first = processes[0]
    return {
        "engine": first["engine"],
        "measured_at": first["measured_at"],
        "threads": threads,
        "prompt_tokens": settings.prompt_tokens,
        "decode_tokens": settings.decode_tokens,
        "processes": len(processes),
        "repetitions": settings.repetitions,
        "warmup": settings.warmup,
        "load_s": statistics.median(one["load_s"] for one in processes),
        **spread("ttft_s", samples, generator=generator),
        **spread("prefill_tokens_per_s", samples, generator=generator),
        **spread("decode_tokens_per_s", samples, generator=generator),
        **{f"token_p{percent}_s": percentile(tokens, percent) for percent in _PERCENTILES},
        **{
            name: _typical(processes, name) for name in ("peak_rss_bytes", "rss_anon_bytes", "idle_rss_bytes")
        },
        "settings": first["settings"],
        "samples": samples,
    }


def _rates(process: Mapping[str, Any], settings: BenchSettings) -> dict[str, list[float]]:
    return {
        "ttft_s": process["ttft_s"],
        "prefill_tokens_per_s": [settings.prompt_tokens / seconds for seconds in process["prefill_s"]],
        "decode_tokens_per_s": [len(one) / sum(one) for one in process["token_s"]],
    }


def _typical(processes: Sequence[Mapping[str, Any]], name: str) -> int | None:
    """Return the median of a number of bytes that a process may not know; of two, the smaller."""
    known = [process[name] for process in processes if process[name] is not None]
    return statistics.median_low(known) if known else None


def spread(
    name: str, samples: Sequence[Mapping[str, Sequence[float]]], *, generator: np.random.Generator
) -> dict[str, float]:
    """Return the median of `name` over all samples and its 95 % interval, under names that start with it.

    Median absolute deviation, minimum and maximum as well.
    """
    by_process = [one[name] for one in samples]
    values = list(itertools.chain.from_iterable(by_process))
    median = statistics.median(values)
    low, high = median_interval(by_process, generator=generator)
    return {
        name: median,
        f"{name}_low": low,
        f"{name}_high": high,
        f"{name}_mad": statistics.median(abs(value - median) for value in values),
        f"{name}_min": min(values),
        f"{name}_max": max(values),
    }


def percentile(ordered: Sequence[float], percent: int) -> float:
    """Return the smallest value that at least `percent` per cent of the ascending `ordered` do not exceed."""
    place = -(-len(ordered) * percent // 100)
    return ordered[max(place, 1) - 1]
