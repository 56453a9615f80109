"""Parsers of the texts in which Linux and Android say what a machine is. Each takes a text, whole or empty.

Vendors add lines, leave some out and disagree on units; what cannot be understood is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

# (implementer, part) of /proc/cpuinfo -> name. Source: Arm's MIDR_EL1 register, as the Linux kernel's cputype.h has it.
_PARTS: Mapping[tuple[int, int], str] = {
    (0x41, 0xD03): "Cortex-A53",
    (0x41, 0xD04): "Cortex-A35",
    (0x41, 0xD05): "Cortex-A55",
    (0x41, 0xD07): "Cortex-A57",
    (0x41, 0xD08): "Cortex-A72",
    (0x41, 0xD09): "Cortex-A73",
    (0x41, 0xD0A): "Cortex-A75",
    (0x41, 0xD0B): "Cortex-A76",
    (0x41, 0xD0C): "Neoverse-N1",
    (0x41, 0xD0D): "Cortex-A77",
    (0x41, 0xD40): "Neoverse-V1",
    (0x41, 0xD41): "Cortex-A78",
    (0x41, 0xD44): "Cortex-X1",
    (0x41, 0xD46): "Cortex-A510",
    (0x41, 0xD47): "Cortex-A710",
    (0x41, 0xD48): "Cortex-X2",
    (0x41, 0xD49): "Neoverse-N2",
    (0x41, 0xD4D): "Cortex-A715",
    (0x41, 0xD4E): "Cortex-X3",
    (0x41, 0xD80): "Cortex-A520",
    (0x41, 0xD81): "Cortex-A720",
    (0x41, 0xD82): "Cortex-X4",
    (0x51, 0x001): "Oryon",
}
_MISSING_SENSOR = (-30.0, 150.0)  # outside, or exactly 0: a sensor that is not there
_WHOLE_DEGREES = 200  # a larger number is in thousandths
_THERMAL = re.compile(r"Temperature\{mValue=([-\w.]+),.*?mName=([^,}]+)")
_PROPERTY = re.compile(r"^\[([^\]]+)\]: \[(.*)\]$", re.MULTILINE)
_FREQUENCY = re.compile(r"/cpu(\d+)/cpufreq/cpuinfo_max_freq:(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Battery:
    """How a battery stands."""

    percent: int | None
    celsius: float | None
    plugged: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Thermal:
    """What Android's thermal service says."""

    status: int | None
    celsius: Mapping[str, float] = field(default_factory=dict)


def features(cpuinfo: str) -> tuple[str, ...]:
    """Return the instruction sets that every core of /proc/cpuinfo has, sorted."""
    lists = [set(value.split()) for name, value in _fields(cpuinfo) if name in ("Features", "flags")]
    return tuple(sorted(set.intersection(*lists))) if lists else ()


def core_parts(cpuinfo: str) -> dict[int, str | None]:
    """Return each core of /proc/cpuinfo with the name of its design, where it is an Arm one that is known."""
    found: dict[int, str | None] = {}
    number, implementer = -1, 0
    for name, value in _fields(cpuinfo):
        if name == "processor" and value.isdecimal():
            number = int(value)
            found[number] = None
        elif name == "CPU implementer":
            implementer = int(value, 0)
        elif name == "CPU part" and number >= 0:
            found[number] = _PARTS.get((implementer, int(value, 0)))
    return found


def soc(properties: Mapping[str, str], *, cpuinfo: str) -> str | None:
    """Return the chip: as Android names it, as the kernel does, or the processor's own name."""
    maker, model = (properties.get(f"ro.soc.{name}", "") for name in ("manufacturer", "model"))
    if model:
        return f"{maker} {model}".strip()
    named = dict(_fields(cpuinfo))
    return named.get("Hardware") or properties.get("ro.board.platform") or named.get("model name") or None


def frequencies_hz(listing: str) -> dict[int, int]:
    """Return each core's highest frequency, from lines of sysfs path, colon and kHz."""
    return {int(number): int(khz) * 1000 for number, khz in _FREQUENCY.findall(listing)}


def memory(meminfo: str) -> dict[str, int]:
    """Return the fields of /proc/meminfo in bytes."""
    found = {}
    for name, value in _fields(meminfo):
        words = value.split()
        if len(words) == 2 and words[0].isdecimal() and words[1] == "kB":
            found[name] = int(words[0]) * 1024
    return found


def allowed_cores(status: str) -> frozenset[int] | None:
    """Return the cores that a process may use, from its /proc/PID/status; None where that is not said."""
    text = dict(_fields(status)).get("Cpus_allowed_list")
    if not text:
        return None
    numbers: set[int] = set()
    for span in text.split(","):
        first, _, last = span.partition("-")
        numbers.update(range(int(first), int(last or first) + 1))
    return frozenset(numbers)


def load_1min(loadavg: str) -> float | None:
    """Return the load average of the last minute, from /proc/loadavg; None where that is not said."""
    words = loadavg.split()
    return _number(words[0]) if words else None


def oom_kills(vmstat: str) -> int | None:
    """Return how many processes were killed for want of memory, from /proc/vmstat; None where that is not said."""
    lines = (line.split() for line in vmstat.splitlines())
    return next((int(words[1]) for words in lines if words[:1] == ["oom_kill"]), None)


def os_release(text: str) -> dict[str, str]:
    """Return the variables of /etc/os-release."""
    lines = (line.partition("=") for line in text.splitlines())
    return {name: value.strip("\"'") for name, _, value in lines if value}


def properties(text: str) -> dict[str, str]:
    """Return what Android's `getprop` lists."""
    return {name: value for name, value in _PROPERTY.findall(text) if value}


def battery(dumpsys: str) -> Battery | None:
    """Return what `dumpsys battery` says; None where there is no battery.

    The first line of a name counts: some vendors print the same names again for a second battery or for history.
    """
    named: dict[str, str] = {}
    for name, value in _fields(dumpsys):
        named.setdefault(name, value)
    if named.get("present") == "false" or "level" not in named:
        return None
    scale = int(named.get("scale", 100)) or 100
    powered = [value == "true" for name, value in named.items() if name.endswith(" powered")]
    tenths = named.get("temperature", "")
    return Battery(
        percent=round(100 * int(named["level"]) / scale),
        celsius=_sensor(int(tenths) / 10) if tenths.lstrip("-").isdecimal() else None,
        plugged=any(powered) if powered else None,
    )


def supply(uevent: str) -> Battery | None:
    """Return the battery among what sysfs says of power supplies; None where there is none."""
    named: dict[str, str] = {}
    for line in uevent.splitlines():
        name, _, value = line.partition("=")
        named.setdefault(name.removeprefix("POWER_SUPPLY_"), value)
    if not named.get("CAPACITY", "").isdecimal():
        return None
    tenths, status = named.get("TEMP", ""), named.get("STATUS")
    return Battery(
        percent=int(named["CAPACITY"]),
        celsius=_sensor(int(tenths) / 10) if tenths.lstrip("-").isdecimal() else None,
        plugged=None if status in (None, "Unknown") else status != "Discharging",
    )


def thermal_service(dumpsys: str) -> Thermal:
    """Return what `dumpsys thermalservice` says: fresh readings where it has them, else those it kept."""
    status = re.search(r"^Thermal Status: (\d+)", dumpsys, re.MULTILINE)
    _, _, fresh = dumpsys.partition("Current temperatures from HAL:")
    fresh, _, _ = fresh.partition("Current cooling devices")
    readings: dict[str, float] = {}
    for value, name in _THERMAL.findall(fresh) or _THERMAL.findall(dumpsys):
        if (celsius := _sensor(_number(value))) is not None:
            readings[name] = celsius
    return Thermal(status=int(status[1]) if status else None, celsius=readings)


def zones(listing: str) -> dict[str, float]:
    """Return the thermal zones from lines of type and reading; of several of one type the hottest."""
    readings: dict[str, float] = {}
    for line in listing.splitlines():
        name, _, text = line.rpartition(" ")
        value = _number(text)
        if value is None or not name:
            continue
        celsius = _sensor(value / 1000 if abs(value) > _WHOLE_DEGREES else value)
        if celsius is not None:
            readings[name] = max(celsius, readings.get(name, celsius))
    return readings


def _sensor(celsius: float | None) -> float | None:
    if celsius is None or celsius == 0 or not _MISSING_SENSOR[0] <= celsius <= _MISSING_SENSOR[1]:
        return None
    return round(celsius, 1)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _fields(text: str) -> Iterator[tuple[str, str]]:
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if colon:
            yield name.strip(), value.strip()
