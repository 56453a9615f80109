"""A file under the limits that a phone's app has, on this machine: threads, memory, context, a cold start.

It tells whether the file fits, and not how fast it is on the phone: a row of it is measured here and says so.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ammd.errors import EngineError
from ammd.machine import available_cores, peak_rss_bytes

from .artifact_ref import ArtifactRef, asked_kind
from .bench_child import prompt_text, time_pass
from .child import Child
from .engine import open_engine
from .memory_cap import Cap, capped
from .page_cache import drop_from_cache, storage_counts


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What the app has."""

    threads: int
    memory_bytes: int
    context_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """A limit that does not hold."""

    limit: str  # `memory`, or `engine` where it cannot run the file
    text: str


def run_under_limits(
    artifact: ArtifactRef, limits: Limits, *, prompt_tokens: int, decode_tokens: int
) -> tuple[dict[str, Any], list[Broken]]:
    """Run a file once in a process of its own, and return a flat row and what broke.

    Raises:
        ArtifactError: There is no such file.
        EngineError: Its engine cannot run what it is to.
    """
    threads = min(limits.threads, available_cores())
    request = {
        "path": str(artifact.path),
        "engine": artifact.kind.value,
        "threads": threads,
        "context_tokens": limits.context_tokens,
        "prompt_tokens": prompt_tokens,
        "decode_tokens": decode_tokens,
    }
    measured: Mapping[str, Any] = {}
    failure: EngineError | None = None
    with Child() as child, capped(child.pid, limits.memory_bytes) as cap:
        try:
            measured = child.call("limited_run:measure_cold", request)
        except EngineError as exc:
            failure = exc
    row = {
        "kind": "measured",
        "measured_on": "this machine, under the profile's limits",
        "file": artifact.name,
        "engine": measured.get("engine", artifact.kind.value),
        "threads": threads,
        "context_tokens": limits.context_tokens,
        "prompt_tokens": prompt_tokens,
        "decode_tokens": decode_tokens,
        "memory_limit_bytes": limits.memory_bytes,
        "memory_limit_by": cap.enforcement.value,
        **{name: measured.get(name) for name in _MEASURED},
    }
    broken = _broken(limits, cap, row, failure)
    return row | {"passes": not broken, "broken": "; ".join(one.text for one in broken)}, broken


_MEASURED = (
    "load_s",
    "read_from_disk_bytes",
    "ttft_s",
    "prefill_tokens_per_s",
    "decode_tokens_per_s",
    "peak_rss_bytes",
)


def _broken(limits: Limits, cap: Cap, row: Mapping[str, Any], failure: EngineError | None) -> list[Broken]:
    peak = max(row["peak_rss_bytes"] or 0, cap.seen_bytes)
    if cap.was_exceeded or peak > limits.memory_bytes:
        over = peak - limits.memory_bytes
        how = f"{over / 2**20:.0f} MiB over" if over > 0 else "reached"
        killed = ", where it was killed" if failure else ""
        return [Broken(limit="memory", text=f"memory: {limits.memory_bytes / 2**20:.0f} MiB {how}{killed}")]
    if failure:
        return [Broken(limit="engine", text=f"engine: {str(failure).splitlines()[0]}")]
    return []


def measure_cold(request: Mapping[str, Any]) -> dict[str, Any]:
    """Open a file that was dropped from the page cache, and make one pass. Runs in a child.

    Raises:
        EngineError: The model cannot be loaded or run.
    """
    path, clock = Path(request["path"]), time.perf_counter
    drop_from_cache(path)  # what is read from the disk afterwards tells whether it was
    before, started = storage_counts(), clock()
    with open_engine(
        path,
        threads=request["threads"],
        context_tokens=request["context_tokens"],
        kind=asked_kind(request),
    ) as engine:
        load_s, after = clock() - started, storage_counts()
        one = time_pass(
            engine,
            prompt_text(engine, tokens=request["prompt_tokens"]),
            prompt_tokens=request["prompt_tokens"],
            decode_tokens=request["decode_tokens"],
            clock=clock,
        )
        return {
            "engine": engine.name,
            "load_s": load_s,
            "read_from_disk_bytes": after[1] - before[1] if before and after else None,
            "ttft_s": one.ttft_s,
            "prefill_tokens_per_s": request["prompt_tokens"] / one.prefill_s,
            "decode_tokens_per_s": len(one.token_s) / sum(one.token_s),
            "peak_rss_bytes": peak_rss_bytes(),
        }
