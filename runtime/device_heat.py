"""Waiting until a device is cool enough to be measured.

What counts is the battery's temperature, which moves slowly and which every phone tells, and Android's own verdict on
whether it throttles. A device with neither is not waited for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from ammd.errors import EngineError

from .device_facts import State

_LOGGER = logging.getLogger(__name__)
_POLL_S = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatGate:
    """When a device is cool, and how long to wait for it."""

    max_celsius: float
    cool_down_s: int


def wait_until_cool(
    read: Callable[[], State], gate: HeatGate, *, device: str, sleep: Callable[[float], None]
) -> State:
    """Return the state in which the device is cool enough.

    Raises:
        EngineError: It is still too warm after the longest cool-down.
    """
    waited = 0
    while reason := too_warm(state := read(), gate):
        if waited >= gate.cool_down_s:
            raise EngineError(
                f"`{device}` is still too warm after {waited} s: {reason}",
                hint="take it out of its case, out of the sun and off the charger, or raise `--max-celsius`",
                device=device,
            )
        _LOGGER.info("%s: %s; waiting", device, reason)
        pause = min(_POLL_S, gate.cool_down_s - waited)
        sleep(pause)
        waited += pause
    return state


def too_warm(state: State, gate: HeatGate) -> str:
    """Return why it is too warm, or nothing."""
    if state.thermal_status:
        return f"Android's thermal status is {state.thermal_status}"
    celsius = state.battery_celsius
    if celsius is not None and celsius > gate.max_celsius:
        return f"the battery has {celsius:.1f} °C, the limit is {gate.max_celsius:.1f}"
    return ""
