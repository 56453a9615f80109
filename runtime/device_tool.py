"""Which `llama-bench` a device can run, and bringing files to it once."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from ammd.artifact import hash_file
from ammd.errors import EngineError
from ammd.llama_source import source_tree
from ammd.machine import cpu_flags

from .device import Device
from .device_facts import DeviceFacts
from .llama_tools import BENCH, Arm64, arm64_folder, native_tool

_DOTPROD = "asimddp"  # Linux's name
# Of an x86 processor's flags those that a compiler makes code for; the rest is the kernel's business.
_COMPILED_FOR = ("sse", "ssse", "avx", "fma", "f16c", "bmi", "amx")
_FREE_LEAST_BYTES = 64 << 20
_HASH_LIMIT_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A `llama-bench` and what lies beside it."""

    isa: str  # what it was compiled for
    source: str  # the tree that it was built from
    program: Path
    libraries: tuple[Path, ...]


def choose_tool(facts: DeviceFacts, *, device: str) -> Tool:
    """Return the fastest `llama-bench` that the device can run, built if need be.

    Raises:
        EngineError: There is none for it, or it cannot be built.
        ArtifactError: llama.cpp's source cannot be had.
    """
    if facts.machine in ("aarch64", "arm64"):
        return arm64_tool(Arm64.DOTPROD if _DOTPROD in facts.features else Arm64.BASELINE)
    if facts.machine == "x86_64":
        needed = {flag for flag in cpu_flags() if flag.startswith(_COMPILED_FOR)}
        missing = sorted(needed - set(facts.features))
        if missing:
            raise EngineError(
                f"`{device}` lacks {', '.join(f'`{name}`' for name in missing)}, for which `{BENCH}` is built here",
                hint="use `ammd bench` on that host itself",
                device=device,
            )
        program = native_tool(BENCH)
        libraries = tuple(sorted(program.parent.glob("lib*.so.[0-9]"))) + tuple(
            program.parent.glob("lib*-impl.so")
        )
        return Tool(isa="x86-64-native", source=source_tree().name, program=program, libraries=libraries)
    raise EngineError(
        f"`{device}` is a `{facts.machine}`: `{BENCH}` is built for aarch64 and x86_64", device=device
    )


def arm64_tool(build: Arm64) -> Tool:
    """Return a cross-built `llama-bench`, built if need be.

    Raises:
        EngineError: It cannot be built.
        ArtifactError: llama.cpp's source cannot be had.
    """
    return Tool(isa=build.value, source=source_tree().name, program=arm64_folder(build) / BENCH, libraries=())


def bring(device: Device, source: Path, target: str) -> bool:
    """Copy a file to the device unless the same is there already; tell whether it was copied.

    Raises:
        EngineError: It did not arrive, or there is no room for it.
    """
    digest = hash_file(source)
    if _hash_there(device, target) == digest:
        return False
    folder = target.rpartition("/")[0]
    device.ask(f"mkdir -p {shlex.quote(folder)}", purpose="making a folder")
    _check_room(device, folder, need_bytes=source.stat().st_size)
    device.push(source, target)
    found = _hash_there(device, target)
    if found != digest:
        raise EngineError(
            f"`{source.name}` arrived altered on `{device.name}`",
            hint="its storage or its cable may be failing",
            expected=digest,
            found=found,
        )
    return True


def _hash_there(device: Device, path: str) -> str:
    name = shlex.quote(path)
    script = f"[ ! -f {name} ] || sha256sum {name}"
    said = device.ask(script, purpose="hashing a file", limit_s=_HASH_LIMIT_S)
    return said.strip().rpartition("\n")[2].partition(" ")[0]


def _check_room(device: Device, folder: str, *, need_bytes: int) -> None:
    """Check for room before a long copy; where `df` says nothing, the copy itself will tell."""
    words = device.run(f"df -Pk {shlex.quote(folder)}").stdout.rpartition("%")[0].split()
    if len(words) < 2 or not words[-2].isdecimal():
        return
    free = int(words[-2]) * 1024
    if free < need_bytes + _FREE_LEAST_BYTES:
        raise EngineError(
            f"`{device.name}` has no space left: {free >> 20} MiB free in `{folder}`, {need_bytes >> 20} are needed",
            hint="free some space there",
            expected=need_bytes,
            found=free,
        )
