"""A device as a host of measured processes: its cores, the models that are brought to it, and when it is cool."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ammd.artifact import whole_record

from .device import Device
from .device_facts import DeviceFacts, State, read_facts
from .device_heat import HeatGate, wait_until_cool
from .device_tool import bring
from .host import Call, Surroundings
from .page_cache import model_files


class DeviceHost:
    """What all kinds of processes on a device have in common; each kind says how it measures."""

    def __init__(self, device: Device, facts: DeviceFacts, *, heat: HeatGate) -> None:
        """Take a device on which a process may begin when `heat` says so."""
        self.call: Call | None = None
        self._device = device
        self._facts = facts
        self._heat = heat
        self._places: dict[Path, str] = {}

    def cores(self) -> tuple[int, int]:
        """Return how many big cores there are; phones' share nothing."""
        count = len(self._facts.big_cores)
        return count, count

    def place(self, path: Path) -> str:
        """Return where a model lies there; it is brought when first asked for.

        Raises:
            EngineError: It did not arrive, or there is no room for it.
        """
        if path not in self._places:
            digest = whole_record(path).sha256[:12]
            there = f"{self._device.folder}/models/{digest}-{path.resolve().name}"
            for file in model_files(path):
                inside = "" if file == path else f"/{file.relative_to(path).as_posix()}"
                bring(self._device, file, f"{there}{inside}")
            self._places[path] = there
        return self._places[path]

    def drop_from_cache(self, path: Path) -> bool:
        """Ask the kernel there to drop a model's files; False where it cannot be asked.

        Raises:
            EngineError: The device cannot be reached.
        """
        if self.call is None:
            return False
        return bool(self.call("page_cache:drop", {"path": self.place(path)})["is_asked"])

    def get_ready(self) -> Surroundings:
        """Wait until the device is cool.

        Raises:
            EngineError: It stays too warm, or cannot be reached.
        """
        return _surroundings(
            wait_until_cool(self._read_state, self._heat, device=self._device.name, sleep=time.sleep)
        )

    def look(self) -> Surroundings:
        """Return how it is now.

        Raises:
            EngineError: It cannot be reached.
        """
        return _surroundings(self._read_state())

    def _read_state(self) -> State:
        return read_facts(self._device).state


def _surroundings(state: State) -> Surroundings:
    told: Mapping[str, Any] = asdict(state)
    return Surroundings(load_1min=state.load_1min, oom_kills=state.oom_kills, state=told)
