"""Joules that the processor's packages have used, where RAPL tells: Linux on Intel's and AMD's processors.

The counter is the whole package's, whoever had the work done, and as a rule only root may read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

_ZONES = Path("/sys/class/powercap")
_MICRO = 1e-6

# Zone -> what its counter stands at, and where it begins anew, in microjoules.
Energy = Mapping[str, tuple[int, int]]


def read_energy(zones: Path = _ZONES) -> Energy:
    """Return the counter of each package; nothing where there is none, or it may not be read."""
    found = {}
    for folder in zones.glob("*:*"):
        try:
            name = (folder / "name").read_text(encoding="ascii").strip()
            if name.startswith("package"):  # other zones are parts of it
                values = [
                    int((folder / part).read_text(encoding="ascii"))
                    for part in ("energy_uj", "max_energy_range_uj")
                ]
                found[folder.name] = (values[0], values[1])
        except (OSError, ValueError):
            continue
    return found


def joules_between(before: Energy, after: Energy) -> float | None:
    """Return what all packages have used in between; None where nothing tells, or not all that did still do."""
    if not before or before.keys() != after.keys():
        return None
    used = 0
    for zone, (start, whole) in before.items():
        end = after[zone][0]
        used += end - start if end >= start else end - start + whole
    return used * _MICRO
