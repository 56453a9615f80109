"""Where the processes of a benchmark run: here, or on a device (`device_host`, `python_host`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ammd.machine import available_cores, physical_cores

from .child import call
from .noise import load_1min, oom_kills
from .page_cache import drop

# As `child.call`: runs a function of this package in a fresh process.
Call = Callable[[str, Mapping[str, object]], dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a machine says of itself between two processes. None where it does not tell."""

    load_1min: float | None
    oom_kills: int | None  # processes that the kernel has killed for want of memory since it started
    state: Mapping[str, Any] | None = None  # battery and temperatures, of a device


class Host(Protocol):
    """A machine on which models are measured."""

    call: Call | None  # None where no function of ours runs: there is no Python

    def cores(self) -> tuple[int, int]:
        """Return how many cores a process may use, and how many of them share nothing."""

    def place(self, path: Path) -> str:
        """Return where a model of this machine lies there."""

    def drop_from_cache(self, path: Path) -> bool:
        """Ask the kernel there to drop a model's files from its page cache; False where it cannot be asked."""

    def get_ready(self) -> Surroundings:
        """Wait until a process may begin.

        Raises:
            EngineError: It stays too warm, or cannot be reached.
        """

    def look(self) -> Surroundings:
        """Return how it is now.

        Raises:
            EngineError: It cannot be reached.
        """

    def measure(self, request: Mapping[str, object]) -> Mapping[str, Any]:
        """Measure a model once in a fresh process; as `bench_child.measure`.

        Raises:
            EngineError: The process was killed, or the model cannot be loaded or run.
        """


class Here:
    """This machine. Implements `Host`."""

    def __init__(self) -> None:
        """Let functions run in fresh processes of this Python."""
        self.call: Call | None = call

    def cores(self) -> tuple[int, int]:
        """Return how many cores a process may use, and how many of them share nothing."""
        return available_cores(), physical_cores()

    def place(self, path: Path) -> str:
        """Return the path itself."""
        return str(path)

    def drop_from_cache(self, path: Path) -> bool:
        """Ask the kernel to drop a model's files; False where it cannot be asked, or a file cannot be read."""
        return drop({"path": str(path)})["is_asked"]

    def get_ready(self) -> Surroundings:
        """Return how it is now: nothing is waited for."""
        return self.look()

    def look(self) -> Surroundings:
        """Return how it is now."""
        return Surroundings(load_1min=load_1min(), oom_kills=oom_kills())

    def measure(self, request: Mapping[str, object]) -> Mapping[str, Any]:
        """Measure a model once in a fresh process.

        Raises:
            EngineError: The process was killed, or the model cannot be loaded or run.
        """
        return call("bench_child:measure", request)
