"""Models on a device in this project's own engines, where the device has Python and the engine's library.

What measures here (`bench_child` and what it needs) goes there as one archive of this package's own modules and runs in
the device's Python; nothing is installed. So a row has all that a row of this machine has: time to the first token,
each token's time, cold and warm starts, bandwidth, memory.
"""

from __future__ import annotations

import json
import shlex
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ammd
from ammd.artifact import hash_file
from ammd.errors import EngineError
from ammd.scratch import scratch_folder

from .artifact_ref import EngineKind
from .child import CHILD_ENVIRONMENT, outcome_of
from .device import Device
from .device_agent import Agent
from .device_facts import DeviceFacts
from .device_heat import HeatGate
from .device_host import DeviceHost
from .device_tool import bring

LEAST_PYTHON = (3, 11)
NEEDED: Mapping[EngineKind, tuple[str, ...]] = {
    EngineKind.ONNX_GENAI: ("onnxruntime-genai",),
    EngineKind.ONNX_RUNTIME: ("onnxruntime", "tokenizers"),
    EngineKind.LLAMA_CPP: ("llama-cpp-python",),
}
_DATE = (1980, 1, 1, 0, 0, 0)  # of each member, so that the same modules are the same archive
_UNPACK_LIMIT_S = 300.0
_ASK = """
import importlib.metadata as m, json, sys
found = {}
for name in sys.argv[1:]:
    try: found[name] = m.version(name)
    except m.PackageNotFoundError: pass
print(json.dumps({"version": sys.version_info[:3], "packages": found}))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class PythonThere:
    """A device's Python."""

    command: str  # as the user names it
    version: tuple[int, ...]
    packages: Mapping[str, str]  # versions, of those that an engine needs

    def missing(self, kind: EngineKind) -> tuple[str, ...]:
        """Return the packages that an engine needs and that are not there."""
        return tuple(name for name in NEEDED[kind] if name not in self.packages)


def read_python(device: Device, command: str) -> PythonThere:
    """Ask a device's Python what it is.

    Raises:
        EngineError: There is none under this name, or it is too old.
    """
    names = dict.fromkeys(name for needed in NEEDED.values() for name in needed)
    ran = device.run(f"{_shell_word(command)} -c {shlex.quote(_ASK)} {' '.join(names)}")
    hint = "`--python` names another, as that of a virtual environment there; a GGUF needs none"
    try:
        told = json.loads(ran.stdout.strip().rpartition("\n")[2])
        version, packages = tuple(told["version"]), told["packages"]
    except (ValueError, TypeError, KeyError) as exc:
        last = ran.stderr.strip().rpartition("\n")[2] or f"exit code {ran.exit_code}"
        raise EngineError(f"`{device.name}` has no Python `{command}`: {last}", hint=hint) from exc
    if version < LEAST_PYTHON:
        found, least = (".".join(map(str, one)) for one in (version, LEAST_PYTHON))
        raise EngineError(f"`{command}` on `{device.name}` is Python {found}, {least} is needed", hint=hint)
    return PythonThere(command=command, version=version, packages=packages)


class PythonHost(DeviceHost):
    """A device whose Python runs this project's engines. Implements `Host`."""

    def __init__(self, device: Device, facts: DeviceFacts, *, heat: HeatGate, python: PythonThere) -> None:
        """Bring the modules.

        Raises:
            EngineError: They did not arrive.
        """
        super().__init__(device, facts, heat=heat)
        self.call = self._call
        self._agent = Agent(device, facts)
        self._python = _shell_word(python.command)
        self._modules = _bring_modules(device, self._python)

    def measure(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Measure a model once.

        Raises:
            EngineError: The process was killed, or the model cannot be loaded or run.
        """
        return self._call("bench_child:measure", request)

    def _call(self, target: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """As `child.call`, there."""
        asked = request.get("threads", 1)
        watched = self._agent.run(
            [self._python, "-m", f"{__package__}.child", json.dumps([target, request])],
            label=f"python: {target}",
            threads=max(asked) if isinstance(asked, list) else int(asked),
            environment={"PYTHONPATH": self._modules, "PYTHONSAFEPATH": "1", **CHILD_ENVIRONMENT},
        )
        lines = [line for line in watched.stdout.splitlines() if line.startswith("{")]
        if not lines:
            raise EngineError(f"`{target}` gave no answer on `{self._device.name}`")
        return outcome_of(json.loads(lines[-1]))


def pack_modules(target: Path) -> None:
    """Write the modules of the ground floor and of this folder into one archive; the same ones are the same bytes."""
    folders = {"ammd": Path(ammd.__file__).parent, "ammd/runtime": Path(__file__).parent}
    with zipfile.ZipFile(target, "w") as archive:
        for inside, folder in folders.items():
            for source in sorted(folder.glob("*.py")):
                member = zipfile.ZipInfo(f"{inside}/{source.name}", _DATE)
                archive.writestr(member, source.read_bytes(), compress_type=zipfile.ZIP_DEFLATED)


def _bring_modules(device: Device, python: str) -> str:
    """Bring and unpack the modules; return their folder there."""
    with scratch_folder() as folder:
        packed = folder / "modules.zip"
        pack_modules(packed)
        target = f"{device.folder}/ammd-{hash_file(packed)[:12]}"
        bring(device, packed, f"{target}.zip")
    name = shlex.quote(target)
    # Compiled once, so that no measured start does it.
    script = (
        f"[ -d {name} ] || {{ rm -rf {name}.part && {python} -m zipfile -e {name}.zip {name}.part && "
        f"{python} -m compileall -q {name}.part && mv {name}.part {name}; }}"
    )
    device.ask(script, purpose="unpacking the modules", limit_s=_UNPACK_LIMIT_S)
    return target


def _shell_word(command: str) -> str:
    """Return a command as shell has it; `~/` is the home over there."""
    inside = command.removeprefix("~/")
    return shlex.quote(command) if inside == command else f'"$HOME"/{shlex.quote(inside)}'
