"""The bench stage: load time, first token, tokens a second and peak memory of each model.

Each model and thread count is measured in fresh processes while this one sleeps (`rounds`). A row holds medians over
all samples with their spread and intervals, the raw samples by process, what was thrown away, and how good the
measurement is (`validity`); of a cell that could not be measured, how it ended. Rates are what a user gets from this
project's engine, the choice of the likeliest token included; text output is not.

A model's record is the row with the most threads, in a sweep the one that decoded fastest, at the first depth; `rows`
holds all of them, `best` the fastest thread count, `file` says what was measured. What the architecture implies
(`ceiling`), and how long the model takes to open (`load_times`), stands in each row.
"""

from __future__ import annotations

import itertools
import logging
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ammd.artifact import FAILED_PARTS, write_json
from ammd.errors import EngineError
from ammd.machine import describe_machine

from .architecture import read_architecture
from .artifact_ref import ArtifactRef, EngineKind
from .bootstrap import median_interval, next_interval
from .ceiling import ceiling_of
from .file_facts import describe_file
from .host import Call, Here, Host
from .load_times import measure_loads
from .memory_split import MEMORY_FIELDS
from .profile_document import measure_profile
from .rounds import Cell, Course, Process, decode_seconds, measure_cells
from .settings import BenchSettings
from .thread_choice import best_row, describe_best, thread_counts
from .validity import Validity, rule_as_json

if TYPE_CHECKING:
    import numpy as np

log = logging.getLogger("ammd.runtime")
_SEED = 0  # of the intervals
_PERCENTILES = (50, 90, 95, 99)
_LLAMA_BENCH_ONLY = ("llama_bench", "memory_samples")  # what its processes alone tell


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchInputs:
    """What is measured."""

    artifacts: tuple[ArtifactRef, ...]  # exported files, and checkpoints where a comparison is wanted


def run(inputs: BenchInputs, settings: BenchSettings, folder: Path) -> dict[str, Any]:
    """Measure every model at every thread count and write `bench.json`.

    Raises:
        ArtifactError: A model is missing.
        EngineError: An engine cannot run what it is to.
    """
    bench = measure_artifacts(inputs.artifacts, settings)
    write_json(folder / "bench.json", bench)
    facts = {"machine": describe_machine(), "validity_rule": rule_as_json(), FAILED_PARTS: _failed(bench)}
    return {"bench": bench, **facts, **_on_profiles(inputs.artifacts, settings)}


def _failed(bench: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the cells that could not be measured, in words."""
    return [
        f"{name}, {row['threads']} {'thread' if row['threads'] == 1 else 'threads'}"
        for name, record in bench.items()
        for row in record["rows"]
        if "failure" in row
    ]


def _on_profiles(artifacts: Sequence[ArtifactRef], settings: BenchSettings) -> dict[str, Any]:
    """Return what becomes of the exported files on each phone; nothing where none is asked for."""
    if not settings.profiles:
        return {}
    files = [one for one in artifacts if one.kind is not EngineKind.TORCH]
    prompt, decode = settings.prompt_tokens, settings.decode_tokens
    return {
        "profiles": [
            measure_profile(files, name, prompt_tokens=prompt, decode_tokens=decode, anchor=None)
            for name in settings.profiles
        ]
    }


def measure_artifacts(
    artifacts: Sequence[ArtifactRef], settings: BenchSettings, host: Host | None = None
) -> dict[str, Any]:
    """Return a record for each model.

    A model that cannot be loaded or run, or whose process is killed, has rows that tell so.

    Args:
        artifacts: The models, on this machine.
        settings: How they are measured.
        host: Where; here where none is named.

    Raises:
        ArtifactError: A model is missing.
        EngineError: An engine cannot run what it is to, or the host cannot be reached.
    """
    host = host or Here()
    for artifact in artifacts:
        _ = artifact.kind  # a missing one, or one that the engine cannot run, is reported before any work
    available, physical = host.cores()
    counts = thread_counts(settings.threads, available=available, physical=physical)
    prompts = tuple(dict.fromkeys(depth or settings.prompt_tokens for depth in settings.depths))
    cells = [
        Cell(artifact=artifact, engine=artifact.kind.value, threads=threads, prompt_tokens=prompt)
        for artifact in artifacts
        for prompt in prompts
        for threads in counts
    ]
    bandwidths = _bandwidths(counts, host.call) if settings.bandwidth and host.call else {}
    courses = measure_cells(
        cells, settings, measure=lambda cell: host.measure(_ask(cell, settings, host)), host=host
    )
    bench: dict[str, Any] = {}
    for artifact in artifacts:
        own = [pair for pair in zip(cells, courses, strict=True) if pair[0].artifact is artifact]
        rows = [build_row(cell, course, _at(settings, cell)) for cell, course in own]
        loads = _loads(own[len(counts) - 1][0], rows, settings, host)
        architecture = read_architecture(artifact.path)
        for row in rows:
            bandwidth = bandwidths.get(row["threads"])
            row |= loads | ceiling_of(row, architecture, bandwidth_bytes_per_s=bandwidth)
        first = rows[: len(counts)]
        chosen = best_row(first) if settings.threads == "sweep" else None
        bench[artifact.name] = {
            **(chosen or first[-1]),
            "rows": rows,
            "best": describe_best(first),
            "file": describe_file(artifact.path),
        }
    return bench


def _ask(cell: Cell, settings: BenchSettings, host: Host) -> dict[str, Any]:
    """Return a child's request."""
    asked = {"path": host.place(cell.artifact.path), "engine": cell.engine, "threads": cell.threads}
    return _at(settings, cell).model_dump() | asked


def _at(settings: BenchSettings, cell: Cell) -> BenchSettings:
    return settings.model_copy(update={"prompt_tokens": cell.prompt_tokens})


def _bandwidths(counts: Sequence[int], call: Call) -> dict[int, float]:
    """Return how fast memory is read with each count of threads; nothing if it cannot be measured."""
    try:
        rates = call("bandwidth:measure", {"threads": list(counts)})["bytes_per_s"]
    except EngineError as error:
        log.warning("memory bandwidth was not measured: %s", error)
        return {}
    return dict(zip(counts, rates, strict=True))


def _loads(
    cell: Cell, rows: Sequence[Mapping[str, Any]], settings: BenchSettings, host: Host
) -> dict[str, Any]:
    """Open a model cold and warm, in processes of their own; not one that could not be run."""
    call = host.call
    if call is None or not settings.cold_loads or any("failure" in row for row in rows):
        return {}
    request = _ask(cell, settings, host)
    try:
        return measure_loads(
            pairs=settings.cold_loads,
            drop=lambda: host.drop_from_cache(cell.artifact.path),
            open_once=lambda: call("load_child:measure", request),
        )
    except EngineError as error:
        return {"load_note": str(error).splitlines()[0]}


def build_row(cell: Cell, course: Course, settings: BenchSettings) -> dict[str, Any]:
    """Return a cell's row, from how its measurement went."""
    if course.failure:
        return {
            "engine": cell.engine,
            "threads": cell.threads,
            "prompt_tokens": settings.prompt_tokens,
            "decode_tokens": settings.decode_tokens,
            "failure": asdict(course.failure),
            "validity": Validity.INVALID.value,
            "validity_reasons": [course.failure.ended],
            "processes": 0,
            "replaced": [_kept(one, settings) for one in course.processes],
        }
    counted, judgement = course.counted, course.judgement
    measured = [one.measured for one in counted]
    return summarize(measured, settings, threads=cell.threads) | {
        "validity": judgement.validity.value,
        "validity_reasons": list(judgement.reasons),
        "stopped_by": course.stopped_by.value if course.stopped_by else None,
        **(_passes(measured, settings) if "discarded" in measured[0] else {}),
        "noise": [one.noise for one in counted],
        "replaced": [_kept(one, settings) for one in course.replaced],
        **({"states": [one.states for one in counted]} if counted[0].states else {}),
        **{name: [one[name] for one in measured] for name in _LLAMA_BENCH_ONLY if name in measured[0]},
    }


def _passes(measured: Sequence[Mapping[str, Any]], settings: BenchSettings) -> dict[str, Any]:
    """Return how each process came to its passes."""
    return {
        "passes_stopped_by": [one["stopped_by"] for one in measured],
        "warmup_passes": [len(one["discarded"]["ttft_s"]) for one in measured],
        "warmed_up_by": [one["warmed_up_by"] for one in measured],
        "discarded": [_rates(one["discarded"], settings) for one in measured],
    }


def _kept(process: Process, settings: BenchSettings) -> dict[str, Any]:
    """Return what is told of a process that does not count."""
    return {
        "validity": process.judgement.validity.value,
        "validity_reasons": list(process.judgement.reasons),
        "noise": process.noise,
        "samples": _rates(process.measured, settings),
    }


def summarize(
    processes: Sequence[Mapping[str, Any]], settings: BenchSettings, *, threads: int
) -> dict[str, Any]:
    """Return one flat row from the raw times of one cell's children; None of what they do not time."""
    import numpy as np

    generator = np.random.default_rng(_SEED)
    samples = [_rates(one, settings) for one in processes]
    tokens = sorted(seconds for one in processes for run in one["token_s"] or () for seconds in run)
    first = processes[0]
    loads = [one["load_s"] for one in processes if one["load_s"] is not None]
    return {
        "engine": first["engine"],
        "measured_at": first["measured_at"],
        "threads": threads,
        "prompt_tokens": settings.prompt_tokens,
        "decode_tokens": settings.decode_tokens,
        "processes": len(processes),
        "repetitions": settings.repetitions,
        "warmup": settings.warmup,
        "load_s": statistics.median(loads) if loads else None,
        **spread("ttft_s", samples, generator=generator),
        **spread("prefill_tokens_per_s", samples, generator=generator),
        **spread("decode_tokens_per_s", samples, generator=generator),
        **{
            f"token_p{percent}_s": percentile(tokens, percent) if tokens else None for percent in _PERCENTILES
        },
        "cpu_s_per_token": _per_token(processes, "decode_cpu_s", settings),
        "joules_per_token": _per_token(processes, "decode_joules", settings),
        **{name: _typical(processes, name) for name in (*MEMORY_FIELDS, "idle_rss_bytes")},
        "settings": first["settings"],
        "samples": samples,
    }


def _rates(process: Mapping[str, Any], settings: BenchSettings) -> dict[str, list[float] | None]:
    counts = (
        itertools.repeat(settings.decode_tokens)
        if process["token_s"] is None
        else map(len, process["token_s"])
    )
    return {
        "ttft_s": process["ttft_s"],
        "prefill_tokens_per_s": [settings.prompt_tokens / seconds for seconds in process["prefill_s"]],
        "decode_tokens_per_s": [
            count / seconds for count, seconds in zip(counts, decode_seconds(process), strict=False)
        ],
    }


def _per_token(processes: Sequence[Mapping[str, Any]], name: str, settings: BenchSettings) -> float | None:
    """Return the median over all passes of what decoding took, by token."""
    known = [value for one in processes for value in one.get(name, ()) if value is not None]
    return statistics.median(known) / settings.decode_tokens if known else None


def _typical(processes: Sequence[Mapping[str, Any]], name: str) -> int | None:
    """Return the median of a number of bytes that a process may not know; of two, the smaller.

    Where an agent looked at it from outside, the highest: it may miss the peak, and never sees too much.
    """
    known = [value for process in processes if (value := process.get(name)) is not None]
    typical = max if "memory_samples" in processes[0] else statistics.median_low
    return typical(known) if known else None


def spread(
    name: str, samples: Sequence[Mapping[str, Sequence[float] | None]], *, generator: np.random.Generator
) -> dict[str, float | None]:
    """Return the median of `name` over all samples and its 95 % interval, under names that start with it.

    Where the median of another run will lie, median absolute deviation, minimum and maximum as well. None of what was
    not timed.
    """
    by_process = [found for one in samples if (found := one[name]) is not None]
    if not by_process:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    values = list(itertools.chain.from_iterable(by_process))
    median = statistics.median(values)
    low, high = median_interval(by_process, generator=generator)
    next_low, next_high = next_interval(by_process, generator=generator)
    return {
        name: median,
        f"{name}_low": low,
        f"{name}_high": high,
        f"{name}_next_low": next_low,
        f"{name}_next_high": next_high,
        f"{name}_mad": statistics.median(abs(value - median) for value in values),
        f"{name}_min": min(values),
        f"{name}_max": max(values),
    }


def percentile(ordered: Sequence[float], percent: int) -> float:
    """Return the smallest value that at least `percent` per cent of the ascending `ordered` do not exceed."""
    place = -(-len(ordered) * percent // 100)
    return ordered[max(place, 1) - 1]
