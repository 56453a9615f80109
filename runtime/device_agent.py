"""A command on a device: pinned to fast cores, under a time limit, with a shell script that looks at its memory."""

from __future__ import annotations

import re
import shlex
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

from ammd.errors import EngineError

from .device import Device, Ran
from .device_facts import DeviceFacts
from .device_tool import bring

_SCRIPT = "device_agent.sh"
_LIMIT_S = 3600
_GRACE_S = 60  # for the agent to say that the time is up
_KIB = 1024
_SIGNALS = 128  # a shell's exit code of what a signal ended
_SEEN = re.compile(r"^@@ammd (.*)$", re.MULTILINE)
_MEMORY = {
    "peak_rss_bytes": "VmHWM",
    "rss_anon_bytes": "RssAnon",
    "rss_file_bytes": "RssFile",
    "swap_bytes": "VmSwap",
    "pss_bytes": "Pss",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """What a command printed, and what the agent saw of it."""

    stdout: str
    memory: Mapping[str, int | None]  # the highest seen; None where nothing was
    samples: int


class Agent:
    """The script on a device."""

    def __init__(self, device: Device, facts: DeviceFacts) -> None:
        """Bring it there.

        Raises:
            EngineError: It did not arrive.
        """
        self._device = device
        self._facts = facts
        self._path = f"{device.folder}/{_SCRIPT}"
        with resources.as_file(resources.files(__package__) / _SCRIPT) as script:
            bring(device, script, self._path)

    def run(
        self, words: Sequence[str], *, label: str, threads: int, environment: Mapping[str, str]
    ) -> Watched:
        """Run a command on as many of the fastest big cores as it has threads.

        Args:
            words: The command; its first word may be shell, the others are quoted.
            label: What messages call it.
            threads: That it has.
            environment: That it gets on top of the device's own.

        Raises:
            EngineError: It was killed, failed or took too long; `status` is its exit code, or less than 0 the signal.
        """
        mask = sum(1 << core for core in fastest_cores(self._facts, threads))
        given = [f"{name}={shlex.quote(value)}" for name, value in environment.items()]
        agent = ["sh", shlex.quote(self._path), str(_LIMIT_S), f"{mask:x}"]
        script = " ".join([*given, *agent, words[0], *map(shlex.quote, words[1:])])
        ran = self._device.run(script, limit_s=_LIMIT_S + _GRACE_S, held=True)
        return read_watched(ran, label=label, device=self._device.name)


def fastest_cores(facts: DeviceFacts, count: int) -> tuple[int, ...]:
    """Return the numbers of the fastest big cores, ascending."""
    speeds = {core.number: core.max_hz or 0 for core in facts.cores}
    return tuple(sorted(sorted(facts.big_cores, key=lambda core: -speeds[core])[:count]))


def read_watched(ran: Ran, *, label: str, device: str) -> Watched:
    """Return what the agent left behind.

    Raises:
        EngineError: The command was killed, failed or took too long.
    """
    match = _SEEN.search(ran.stdout)
    seen = dict(pair.split("=", 1) for pair in match[1].split()) if match else {}
    if ran.exit_code:
        raise _failure(ran, seen, label=label, device=device)
    return Watched(
        stdout=ran.stdout,
        memory={name: _bytes(seen, field) for name, field in _MEMORY.items()},
        samples=int(seen.get("samples", 0)),
    )


def _failure(ran: Ran, seen: Mapping[str, str], *, label: str, device: str) -> EngineError:
    said, code = ran.stderr.strip().splitlines(), ran.exit_code
    status = _SIGNALS - code if _SIGNALS < code <= _SIGNALS + signal.NSIG else code
    start = f"`{label}` on `{device}`"
    if seen.get("end") == "limit":
        return EngineError(f"{start} was ended after {_LIMIT_S} s", device=device)
    if status == -9:
        killer = next((line for line in said if re.search("lowmemorykiller|lmkd", line, re.IGNORECASE)), "")
        how = "by the low-memory killer" if killer else "(SIGKILL)"
        return EngineError(
            f"{start} was killed {how} at {(_bytes(seen, 'VmHWM') or 0) >> 20} MiB",
            hint="close other apps, or use a smaller file or a shorter context",
            device=device,
            log=killer,
            status=status,
        )
    if status == -4:
        message = f"{start} met an instruction that it does not have"
        return EngineError(message, device=device, status=status)
    if code == 127 and any("taskset" in line for line in said):
        hint = "install util-linux, busybox or toybox there"
        return EngineError(f"`taskset` is missing on `{device}`", hint=hint, device=device)
    last = said[-1] if said else "it said nothing"
    return EngineError(f"{start} ended with {code}: {last}", device=device, status=status)


def _bytes(seen: Mapping[str, str], name: str) -> int | None:
    text = seen.get(name, "")
    return int(text) * _KIB if text.isdecimal() else None
