"""`ammd doctor`: what is here, what is missing, and what to install so that a quickstart can run.

Each check is one row with a state: `ok`, `note` (works, but say so) or `missing` (a run would fail, with the
exit code it would fail with). Libraries are looked up by their installed versions, not imported: a doctor
that crashes with its patient is no help, and torch alone takes seconds to load.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import Enum
from importlib import metadata
from pathlib import Path
from typing import Any

from ammd.errors import AmmdError, ArtifactError, DistillError, EngineError, ExportError, RecipeError

SCHEMA = "ammd.doctor/1"
_GIB = 2**30
# Whose absence breaks what: the class gives the exit code of a run without it.
_NEEDED_BY = {
    "torch": DistillError,
    "transformers": DistillError,
    "accelerate": DistillError,
    "safetensors": DistillError,
    "gguf": ExportError,
    "onnx": ExportError,
    "onnx-ir": ExportError,
    "sentencepiece": ExportError,
    "llama-cpp-python": EngineError,
    "onnxruntime": EngineError,
    "onnxruntime-genai": EngineError,
    "tokenizers": EngineError,
}


class State(Enum):
    """How one thing stands."""

    OK = "ok"
    NOTE = "note"
    MISSING = "missing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One checked thing."""

    name: str
    state: State
    found: str
    advice: str = ""
    exit_code: int = 0  # of a run that meets it; 0 unless missing


def examine(runs_dir: Path) -> dict[str, Any]:
    """Return a document with every finding and the exit code that a quickstart would end with."""
    findings = [_python(), *_libraries(), _torch_build(), *_tools(), *_settings()]
    # The rest is asked of ammd's own modules, which import these libraries.
    if not any(finding.exit_code == RecipeError.exit_code for finding in findings):
        findings += [_exporter(), *_cpu(), *_room(runs_dir), _cache()]
    codes = [finding.exit_code for finding in findings if finding.exit_code]
    rows = [{**asdict(finding), "state": finding.state.value} for finding in findings]
    return {"schema": SCHEMA, "exit_code": min(codes, default=0), "findings": rows}


def _python() -> Finding:
    # An older one than the package asks for does not come this far: pip refuses to install.
    found = f"{platform.python_version()} at {sys.executable}"
    return Finding(name="python", state=State.OK, found=found)


def _libraries() -> Iterator[Finding]:
    """Compare every dependency that the installed package declares with what is installed."""
    from packaging.requirements import Requirement

    for text in metadata.requires("ammd") or []:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        kind = _NEEDED_BY.get(requirement.name, RecipeError)
        name = requirement.name
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield _missing(name, "not installed", f"pip install '{requirement}'", kind)
            continue
        if requirement.specifier.contains(version, prereleases=True):
            yield Finding(name=name, state=State.OK, found=version)
        else:
            yield _missing(
                name, f"{version}, outside {requirement.specifier}", f"pip install '{requirement}'", kind
            )


def _torch_build() -> Finding:
    """Tell the CPU build from CUDA's by the file that names it, without loading either."""
    try:
        root = Path(str(metadata.distribution("torch").locate_file("torch")))
        text = (root / "version.py").read_text(encoding="utf-8")
    except (metadata.PackageNotFoundError, OSError):
        return Finding(name="torch build", state=State.NOTE, found="unknown")
    if "cuda: Optional[str] = None" in text or "cuda = None" in text:
        return Finding(name="torch build", state=State.OK, found="CPU")
    advice = "works; the CPU build is gigabytes smaller, and training here runs on the CPU"
    return Finding(name="torch build", state=State.NOTE, found="CUDA", advice=advice)


def _tools() -> Iterator[Finding]:
    compiler = next((found for name in ("g++", "clang++", "c++") if (found := shutil.which(name))), None)
    if compiler:
        yield Finding(name="C++ compiler", state=State.OK, found=compiler)
    else:
        yield Finding(
            name="C++ compiler",
            state=State.NOTE,
            found="none",
            advice="needed to install llama-cpp-python from source: `apt install g++` or Xcode's tools",
        )
    make = shutil.which("make")
    advice = "" if make else "only `make run` and `make test` need it: `apt install make`"
    yield Finding(name="make", state=State.OK if make else State.NOTE, found=make or "none", advice=advice)


def _exporter() -> Finding:
    from ammd.export.optimum_exporter import missing_exporter

    if fault := missing_exporter():
        advice = f"only the `onnx-standard` schemes need it, {fault[1]}"
        return Finding(name="optimum", state=State.NOTE, found="none that fits", advice=advice)
    return Finding(name="optimum", state=State.OK, found=metadata.version("optimum-onnx"))


def _cpu() -> Iterator[Finding]:
    from ammd.machine import available_cores, describe_machine, has_fast_bfloat16

    yield Finding(
        name="cores", state=State.OK, found=f"{available_cores()} ({describe_machine()['cpu'] or 'unknown'})"
    )
    fast = has_fast_bfloat16()
    yield Finding(
        name="bfloat16",
        state=State.OK if fast else State.NOTE,
        found="in hardware" if fast else "not in hardware",
        advice="" if fast else "training uses float32 and takes about twice as long",
    )


def _room(runs_dir: Path) -> Iterator[Finding]:
    """Compare free disk and memory with what the packaged quickstart takes."""
    from ammd.machine import available_memory_bytes

    from .recipe import load_recipe
    from .resources import count_parameters, estimate_need
    from .stages import STAGES

    parameters = count_parameters(load_recipe(check_files=False).prepare.teacher) or 0
    need = estimate_need(list(STAGES.values()), parameters=parameters)
    place = next(path for path in (runs_dir.absolute(), *runs_dir.absolute().parents) if path.exists())
    yield _amount("disk", shutil.disk_usage(place).free, need.disk_bytes, f"at `{place}`", ArtifactError)
    yield _amount("memory", available_memory_bytes(), need.memory_bytes, "", DistillError)


def _amount(name: str, free: int, need: int, where: str, kind: type[AmmdError]) -> Finding:
    found = f"{free / _GIB:.1f} GiB free {where}".rstrip()
    if free >= need:
        return Finding(name=name, state=State.OK, found=found)
    return _missing(name, found, f"a quickstart takes about {need / _GIB:.1f} GiB", kind)


def _cache() -> Finding:
    from ammd.fetch import user_cache

    folder = user_cache()
    entries = sorted(path.parent.name for path in folder.glob("*/manifest.json"))
    if entries:
        return Finding(name="cache", state=State.OK, found=f"{folder}: {', '.join(entries)}")
    return Finding(
        name="cache",
        state=State.NOTE,
        found=f"{folder}: empty",
        advice="the first run downloads the packaged teacher (93 MB) and llama.cpp's source (77 MB)",
    )


def _settings() -> Iterator[Finding]:
    for name in ("AMMD_OFFLINE_DIR", "LLAMA_CPP_DIR"):
        value = os.environ.get(name)
        if not value:
            continue
        if Path(value).is_dir():
            yield Finding(name=name, state=State.OK, found=value)
        else:
            yield _missing(name, f"{value}, no such folder", f"correct or unset {name}", ArtifactError)


def _missing(name: str, found: str, advice: str, kind: type[AmmdError]) -> Finding:
    return Finding(name=name, state=State.MISSING, found=found, advice=advice, exit_code=kind.exit_code)
