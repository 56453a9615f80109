"""Speed and memory of GGUF files on a device: a phone, a board, another host, or this one in the same way.

llama.cpp's own `llama-bench` is brought there with the file, runs on the fast cores in fresh processes, in rounds over
files and thread counts as `bench` has it, and a shell script beside it looks at its memory every 0.2 s. The settings of
the engine are those of this project's own (`llama_engine`), stated and not left to defaults. llama-bench tells neither
the time to the first token nor each token's time, so a row has none.
"""

from __future__ import annotations

import itertools
import json
import re
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from ammd.errors import EngineError
from ammd.progress import progress

from .artifact_ref import EngineKind, detect_kind
from .bench import spread
from .device import Device, Ran
from .device_facts import DeviceFacts, State, read_facts
from .device_heat import HeatGate, wait_until_cool
from .device_tool import Tool, bring, choose_tool
from .file_facts import describe_file
from .llama_tools import BENCH
from .settings import BenchSettings
from .thread_choice import thread_counts

SCHEMA = "ammd.device-bench/1"
_AGENT = "device_agent.sh"
_LIMIT_S = 3600
_SEED = 0  # of the intervals
_KIB = 1024
_BATCH_TOKENS = 512
_KILLED = 128 + 9
_SEEN = re.compile(r"^@@ammd (.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cell:
    """One file at one thread count, on the device."""

    name: str
    path: str
    threads: int
    cores: tuple[int, ...]

    @property
    def mask(self) -> str:
        return f"{sum(1 << core for core in self.cores):x}"


def measure_on_device(
    device: Device, files: Mapping[str, Path], settings: BenchSettings, *, heat: HeatGate
) -> dict[str, Any]:
    """Measure every file at every thread count and return the document.

    Args:
        device: Where.
        files: GGUF files by name.
        settings: As for `bench`; `warmup` is llama-bench's own (a whole prompt, one token), or none with 0.
        heat: When a process may begin.

    Raises:
        EngineError: A file is no GGUF; the device cannot be reached, has no room, is too warm, or cannot run it.
    """
    for path in files.values():
        if detect_kind(path) is not EngineKind.LLAMA_CPP:
            raise EngineError(f"`{path}` is no GGUF, and `{BENCH}` runs nothing else", path=str(path))
    facts = read_facts(device)
    tool = choose_tool(facts, device=device.name)
    program = _bring_tool(device, tool)
    described = {name: describe_file(path) for name, path in files.items()}
    cells, big = [], len(facts.big_cores)
    for name, path in files.items():
        there = f"{device.folder}/models/{described[name]['sha256'][:12]}-{path.name}"
        bring(device, path, there)
        for threads in thread_counts(settings.threads, available=big, physical=big):
            cells.append(_Cell(name=name, path=there, threads=threads, cores=_fastest(facts, threads)))
    runs = _measure_cells(device, facts, cells, settings, program=program, heat=heat)
    bench: dict[str, Any] = {}
    for name in files:
        rows = [
            _summarize(cell, found, settings, tool=tool)
            for cell, found in zip(cells, runs, strict=True)
            if cell.name == name
        ]
        bench[name] = {**rows[-1], "rows": rows, "file": described[name]}
    return {"schema": SCHEMA, "device": {"name": device.name, **asdict(facts)}, "bench": bench}


def _bring_tool(device: Device, tool: Tool) -> str:
    """Bring `llama-bench` and the agent; return how it is called there."""
    folder = f"{device.folder}/{tool.isa}"
    for path in (tool.program, *tool.libraries):
        bring(device, path, f"{folder}/{path.name}")
    with resources.as_file(resources.files(__package__) / _AGENT) as agent:
        bring(device, agent, f"{device.folder}/{_AGENT}")
    libraries = f"LD_LIBRARY_PATH={shlex.quote(folder)} " if tool.libraries else ""
    agent_there, program = map(shlex.quote, (f"{device.folder}/{_AGENT}", f"{folder}/{BENCH}"))
    return f"{libraries}sh {agent_there} {_LIMIT_S} MASK {program}"


def _fastest(facts: DeviceFacts, count: int) -> tuple[int, ...]:
    speeds = {core.number: core.max_hz or 0 for core in facts.cores}
    return tuple(sorted(sorted(facts.big_cores, key=lambda core: -speeds[core])[:count]))


def _measure_cells(
    device: Device,
    facts: DeviceFacts,
    cells: Sequence[_Cell],
    settings: BenchSettings,
    *,
    program: str,
    heat: HeatGate,
) -> list[list[dict[str, Any]]]:
    """Return what each process of each cell measured."""
    runs: list[list[dict[str, Any]]] = [[] for _ in cells]
    total = len(cells) * settings.processes
    with progress(f"bench on {device.name}", total) as report:
        for done in range(total):
            index = done % len(cells)
            cell = cells[index]
            report(done, f"{cell.name}, {cell.threads} threads")
            before = wait_until_cool(
                lambda: read_facts(device).state, heat, device=device.name, sleep=time.sleep
            )
            command = f"{program.replace('MASK', cell.mask, 1)} {_options(cell, facts, settings)}"
            ran = device.run(command, limit_s=_LIMIT_S + 60, held=True)
            after = read_facts(device).state
            runs[index].append(parse_run(ran, device=device.name) | _states(before, after))
        report(total)
    return runs


def _options(cell: _Cell, facts: DeviceFacts, settings: BenchSettings) -> str:
    """Return llama-bench's arguments; nothing that matters is left to its defaults."""
    options: dict[str, object] = {
        "-m": cell.path,
        "-p": settings.prompt_tokens,
        "-n": settings.decode_tokens,
        "-r": settings.repetitions,
        "-t": cell.threads,
        "-b": _BATCH_TOKENS,
        "-ub": _BATCH_TOKENS,
        "-fa": 1,
        "-ctk": "f16",
        "-ctv": "f16",
        "-lm": "none",
        "-ngl": 0,
        "--repack": int("amx_int8" not in facts.features),  # as in `llama_engine`
        "-o": "jsonl",
    }
    words = [shlex.quote(str(word)) for pair in options.items() for word in pair]
    return " ".join([*words, *([] if settings.warmup else ["--no-warmup"])])


def parse_run(ran: Ran, *, device: str) -> dict[str, Any]:
    """Return what one process of `llama-bench` printed and what the agent saw.

    Raises:
        EngineError: It was killed, failed, or printed something else.
    """
    match = _SEEN.search(ran.stdout)
    seen = dict(pair.split("=", 1) for pair in match[1].split()) if match else {}
    if ran.exit_code:
        raise _failure(ran, seen, device=device)
    try:
        rows = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]
        phases = {"prefill" if row["n_gen"] == 0 else "decode": row for row in rows}
        prefill, decode = phases["prefill"], phases["decode"]
        return {
            "prefill_tokens_per_s": [float(rate) for rate in prefill["samples_ts"]],
            "decode_tokens_per_s": [float(rate) for rate in decode["samples_ts"]],
            "memory": {
                "peak_rss_bytes": _bytes(seen, "VmHWM"),
                "rss_anon_bytes": _bytes(seen, "RssAnon"),
                "rss_file_bytes": _bytes(seen, "RssFile"),
                "swap_bytes": _bytes(seen, "VmSwap"),
                "pss_bytes": _bytes(seen, "Pss"),
                "memory_samples": int(seen.get("samples", 0)),
            },
            "llama_bench": [prefill, decode],
        }
    except (ValueError, KeyError, TypeError) as exc:
        raise EngineError(f"`{BENCH}` on `{device}` printed something else: {exc!r}", device=device) from exc


def _failure(ran: Ran, seen: Mapping[str, str], *, device: str) -> EngineError:
    said = ran.stderr.strip().splitlines()
    if seen.get("end") == "limit":
        return EngineError(f"`{BENCH}` on `{device}` was ended after {_LIMIT_S} s", device=device)
    if ran.exit_code == _KILLED:
        killer = next((line for line in said if re.search("lowmemorykiller|lmkd", line, re.IGNORECASE)), "")
        how = "by the low-memory killer" if killer else "(SIGKILL)"
        return EngineError(
            f"`{BENCH}` on `{device}` was killed {how} at {(_bytes(seen, 'VmHWM') or 0) >> 20} MiB",
            hint="close other apps, or use a smaller file or a shorter context",
            device=device,
            log=killer,
        )
    if ran.exit_code == 128 + 4:
        return EngineError(f"`{BENCH}` on `{device}` met an instruction that it does not have", device=device)
    if ran.exit_code == 127 and any("taskset" in line for line in said):
        hint = "install util-linux, busybox or toybox there"
        return EngineError(f"`taskset` is missing on `{device}`", hint=hint, device=device)
    last = said[-1] if said else "it said nothing"
    return EngineError(f"`{BENCH}` on `{device}` ended with {ran.exit_code}: {last}", device=device)


def _bytes(seen: Mapping[str, str], name: str) -> int | None:
    text = seen.get(name, "")
    return int(text) * _KIB if text.isdecimal() else None


def _states(before: State, after: State) -> dict[str, Any]:
    return {"state": {"before": asdict(before), "after": asdict(after)}}


def _summarize(
    cell: _Cell, processes: Sequence[Mapping[str, Any]], settings: BenchSettings, *, tool: Tool
) -> dict[str, Any]:
    """Return a row: the names that a row of `ammd bench` has, and what only a device has."""
    import numpy as np

    generator = np.random.default_rng(_SEED)
    rates = ("prefill_tokens_per_s", "decode_tokens_per_s")
    samples = [{name: one[name] for name in rates} for one in processes]
    first = processes[0]["llama_bench"][0]
    return {
        "engine": f"llama.cpp ({BENCH} of {tool.source}, {tool.isa})",
        "isa": tool.isa,
        "measured_at": first["test_time"],
        "threads": cell.threads,
        "cores": list(cell.cores),
        "prompt_tokens": settings.prompt_tokens,
        "decode_tokens": settings.decode_tokens,
        "processes": len(processes),
        "repetitions": settings.repetitions,
        "warmup": min(settings.warmup, 1),
        **{
            name: value
            for metric in rates
            for name, value in spread(metric, samples, generator=generator).items()
        },
        **_peaks([one["memory"] for one in processes]),
        "settings": {
            "batch_tokens": first["n_ubatch"],
            "flash_attention": bool(first["flash_attn"]),
            "memory_map": first["load_mode"] != "none",
            "weight_repacking": bool(first["repack"]),
            "kv_cache_type": first["type_k"],
        },
        "samples": samples,
        "states": [one["state"] for one in processes],
        "llama_bench": list(itertools.chain.from_iterable(one["llama_bench"] for one in processes)),
    }


def _peaks(seen: Sequence[Mapping[str, int | None]]) -> dict[str, int | None]:
    """Return the highest of each number over the processes; None where none of them knows it."""
    return {
        name: max((known for one in seen if (known := one[name]) is not None), default=None)
        for name in seen[0]
    }
