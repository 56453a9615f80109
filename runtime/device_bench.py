"""Speed and memory of files on a device: a phone, a board, another host, or this one in the same way.

GGUF files run in llama.cpp's own `llama-bench`, which is brought with them (`llama_bench_host`); ONNX folders, and GGUF
files whose engine is named, in the device's Python (`python_host`). Both in fresh processes on the fast cores, in
rounds over files and thread counts, and with the rules of `bench`; a shell script beside each looks at its memory.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from ammd.errors import EngineError, RecipeError

from .architecture import has_encoder
from .artifact_ref import ArtifactRef, EngineKind
from .bench import measure_artifacts
from .bench_document import SCHEMA
from .device import Device
from .device_agent import fastest_cores
from .device_facts import DeviceFacts, read_facts
from .device_heat import HeatGate
from .device_tool import choose_tool
from .llama_bench_host import LlamaBenchHost
from .llama_tools import BENCH
from .python_host import PythonHost, PythonThere, read_python
from .settings import BenchSettings
from .validity import rule_as_json

log = logging.getLogger("ammd.runtime")
PYTHON = "python3"


def measure_on_device(
    device: Device,
    artifacts: Sequence[ArtifactRef],
    settings: BenchSettings,
    *,
    heat: HeatGate,
    python: str = PYTHON,
) -> dict[str, Any]:
    """Measure every file at every thread count and return the document of `ammd bench`.

    Args:
        device: Where.
        artifacts: GGUF files and ONNX folders. A GGUF runs in `llama-bench` unless its engine is named.
        settings: As for `bench`; for `llama-bench`, see `check_settings`.
        heat: When a process may begin.
        python: The device's Python, for what `llama-bench` does not run.

    Raises:
        RecipeError: A setting is not to be had from `llama-bench`.
        EngineError: A file is a checkpoint; the device cannot be reached, has no room, is too warm, or cannot run it.
    """
    for one in artifacts:
        if one.kind is EngineKind.TORCH:
            raise EngineError(
                f"`{one.path}` is a checkpoint, and devices run exported files", path=str(one.path)
            )
    tooled = [one for one in artifacts if is_for_tool(one)]
    if tooled:
        check_settings(settings)
        check_files(tooled)
    others = [one for one in artifacts if not is_for_tool(one)]
    facts = read_facts(device)
    bench: dict[str, Any] = {}
    if others:
        there = read_python(device, python)
        others = [_runnable(one, there, device=device.name) for one in others]
    if tooled:
        tool = choose_tool(facts, device=device.name)
        host = LlamaBenchHost(device, facts, heat=heat, tool=tool)
        bench |= _measure(tooled, settings, host)
        for record in (bench[one.name] for one in tooled):
            for row in (record, *record["rows"]):
                row |= {"isa": tool.isa, "decode_depth_tokens": 0}
    if others:
        bench |= _measure(others, settings, PythonHost(device, facts, heat=heat, python=there))
    for record in bench.values():
        for row in (record, *record["rows"]):
            row["cores"] = list(fastest_cores(facts, row["threads"]))
    return {
        "schema": SCHEMA,
        "device": {"name": device.name, **asdict(facts)},
        "machine": machine_of(facts),
        "validity_rule": rule_as_json(),
        "bench": {one.name: bench[one.name] for one in artifacts},
    }


def is_for_tool(artifact: ArtifactRef) -> bool:
    """Tell whether a file runs in `llama-bench`: a GGUF whose engine is not named."""
    return artifact.engine is None and artifact.kind is EngineKind.LLAMA_CPP


def check_settings(settings: BenchSettings) -> None:
    """Check that nothing is asked for which `llama-bench` does not do.

    Raises:
        RecipeError: Names the setting.
    """
    hint = f"`--engine {EngineKind.LLAMA_CPP.value}` measures GGUF files in Python on the device, with all settings"
    if any(settings.depths):
        raise RecipeError(
            f"`depths = {list(settings.depths)}`: `{BENCH}` decodes from an empty context on", hint=hint
        )
    if settings.warmup > 1:
        raise RecipeError(
            f"`warmup = {settings.warmup}`: `{BENCH}` warms up once (1) or not at all (0)", hint=hint
        )


def check_files(artifacts: Sequence[ArtifactRef]) -> None:
    """Check that `llama-bench` runs the files.

    Raises:
        EngineError: One is an encoder-decoder.
    """
    for one in artifacts:
        if has_encoder(one.path):
            raise EngineError(
                f"`{one.path}` is an encoder-decoder, which `{BENCH}` does not run",
                hint=f"`--engine {EngineKind.LLAMA_CPP.value}` measures it in Python on the device",
                path=str(one.path),
            )


def machine_of(facts: DeviceFacts) -> dict[str, Any]:
    """Return what a document says of the machine, in the words of `describe_machine`."""
    return {
        "cpu": facts.soc,
        "cores": len(facts.cores),
        "ram_bytes": facts.ram_bytes,
        "system": facts.system or facts.kernel,
    }


def _measure(
    artifacts: Sequence[ArtifactRef], settings: BenchSettings, host: LlamaBenchHost | PythonHost
) -> dict[str, Any]:
    for one in artifacts:
        host.place(one.path)  # all of them, before anything is measured
    return measure_artifacts(artifacts, settings, host)


def _runnable(artifact: ArtifactRef, python: PythonThere, *, device: str) -> ArtifactRef:
    """Return the artifact with an engine that the device has; onnxruntime where onnxruntime-genai is not there.

    Raises:
        EngineError: The device has none for it.
    """
    missing = python.missing(artifact.kind)
    if not missing:
        return replace(artifact, engine=artifact.kind)
    if artifact.engine is None and artifact.kind is EngineKind.ONNX_GENAI:
        plain = EngineKind.ONNX_RUNTIME
        if not python.missing(plain):
            log.info("%s has no onnxruntime-genai: `%s` runs in onnxruntime", device, artifact.name)
            return replace(artifact, engine=plain)
        missing = python.missing(plain)
    names = " and ".join(f"`{name}`" for name in missing)
    raise EngineError(
        f"`{device}` cannot run `{artifact.name}`: its `{python.command}` has no {names}",
        hint=f"`pip install {' '.join(missing)}` there, or name another Python with `--python`",
        device=device,
    )
