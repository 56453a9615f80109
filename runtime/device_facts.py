"""What a device is: processor, cores, instructions, memory, system, battery, temperatures.

One script prints everything that a Linux or Android machine may have, each part under a heading, in one round trip;
the parts are read by `fact_texts`. What a device does not say is None or empty, never a guess.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from . import fact_texts
from .device import Device

_HEADING = "@@ammd "
_PARTS: Mapping[str, str] = {
    "machine": "uname -m",
    "kernel": "uname -sr",
    "cpuinfo": "cat /proc/cpuinfo",
    "meminfo": "cat /proc/meminfo",
    "status": "cat /proc/self/status",
    "frequencies": "grep . /dev/null /sys/devices/system/cpu/cpu[0-9]*/cpufreq/cpuinfo_max_freq",
    "board": "tr -d '\\000' < /proc/device-tree/model",
    "os": "cat /etc/os-release",
    "zones": 'for z in /sys/class/thermal/thermal_zone*; do echo "$(cat "$z/type") $(cat "$z/temp")"; done',
    "supplies": "cat /sys/class/power_supply/*/uevent",
    "properties": "getprop",
    "battery": "dumpsys battery",
    "thermal": "dumpsys thermalservice",
    "load": "cat /proc/loadavg",
    "counts": "cat /proc/vmstat",
}
_BIG_SHARE = 0.75  # of the fastest core's frequency: a phone's prime and big cores, not its small ones


@dataclass(frozen=True, slots=True, kw_only=True)
class Core:
    """One core that our processes may use."""

    number: int
    max_hz: int | None
    part: str | None  # as Arm calls it


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """How warm, how full and how busy it is; changes while it works."""

    battery_percent: int | None
    battery_celsius: float | None
    plugged: bool | None
    thermal_status: int | None  # Android's, 0 (none) to 6 (shutdown)
    temperatures_celsius: Mapping[str, float]  # by the name of the sensor
    load_1min: float | None = None
    oom_kills: int | None = None  # processes that the kernel has killed for want of memory since it started


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFacts:
    """What a device says of itself."""

    model: str | None  # of the phone or board
    soc: str | None  # or, on a laptop, the processor
    machine: str  # `aarch64`, `x86_64`
    cores: tuple[Core, ...]
    features: tuple[str, ...]  # instructions that all cores have, as Linux names them
    ram_bytes: int | None
    ram_available_bytes: int | None
    system: str | None
    kernel: str
    state: State

    @property
    def big_cores(self) -> tuple[int, ...]:
        """The numbers of the fast cores; of all where frequencies are not known."""
        known = [core.max_hz for core in self.cores if core.max_hz]
        least = _BIG_SHARE * max(known, default=0)
        return tuple(core.number for core in self.cores if not known or (core.max_hz or 0) >= least)


def read_facts(device: Device) -> DeviceFacts:
    """Ask a device what it is.

    Raises:
        EngineError: It cannot be asked.
    """
    script = "".join(f"echo '{_HEADING}{name}'; {command}; echo; " for name, command in _PARTS.items())
    return parse_facts(device.ask(f"{{ {script}}} 2>/dev/null; true", purpose="asking what it is"))


def parse_facts(text: str) -> DeviceFacts:
    """Return the facts in what the script printed."""
    parts = dict.fromkeys(_PARTS, "")
    for block in text.split(_HEADING)[1:]:
        name, _, rest = block.partition("\n")
        parts[name.strip()] = rest.strip()
    properties = fact_texts.properties(parts["properties"])
    memory = fact_texts.memory(parts["meminfo"])
    names = fact_texts.os_release(parts["os"])
    android = properties.get("ro.build.version.release")
    return DeviceFacts(
        model=_phone(properties) or parts["board"] or None,
        soc=fact_texts.soc(properties, cpuinfo=parts["cpuinfo"]),
        machine=parts["machine"],
        cores=_cores(parts),
        features=fact_texts.features(parts["cpuinfo"]),
        ram_bytes=memory.get("MemTotal"),
        ram_available_bytes=memory.get("MemAvailable"),
        system=f"Android {android}" if android else names.get("PRETTY_NAME"),
        kernel=parts["kernel"],
        state=_state(parts),
    )


def _phone(properties: Mapping[str, str]) -> str | None:
    maker, model = (properties.get(f"ro.product.{name}", "") for name in ("manufacturer", "model"))
    return model if model.lower().startswith(maker.lower()) else f"{maker} {model}"


def _cores(parts: Mapping[str, str]) -> tuple[Core, ...]:
    frequencies = fact_texts.frequencies_hz(parts["frequencies"])
    names = fact_texts.core_parts(parts["cpuinfo"])
    numbers = sorted({*frequencies, *names})
    allowed = fact_texts.allowed_cores(parts["status"])
    return tuple(
        Core(number=number, max_hz=frequencies.get(number), part=names.get(number))
        for number in numbers
        if allowed is None or number in allowed
    )


def _state(parts: Mapping[str, str]) -> State:
    battery = fact_texts.battery(parts["battery"]) or fact_texts.supply(parts["supplies"])
    thermal = fact_texts.thermal_service(parts["thermal"])
    return State(
        battery_percent=battery.percent if battery else None,
        battery_celsius=battery.celsius if battery else None,
        plugged=battery.plugged if battery else None,
        thermal_status=thermal.status,
        temperatures_celsius=thermal.celsius or fact_texts.zones(parts["zones"]),
        load_1min=fact_texts.load_1min(parts["load"]),
        oom_kills=fact_texts.oom_kills(parts["counts"]),
    )
