"""Devices by the names that users give them: `local`, `ssh:USER@HOST[:PORT]`, `adb:SERIAL`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ammd.errors import EngineError, RecipeError

from . import adb_device, local_device, ssh_device
from .device import Device
from .device_facts import read_facts

SCHEMA = "ammd.devices/1"


def open_device(target: str) -> Device:
    """Connect to a device.

    Raises:
        RecipeError: `target` names no kind of device.
        EngineError: It cannot be reached.
    """
    if target == local_device.NAME:
        return Device(local_device.LocalConnection())
    if target.startswith(ssh_device.PREFIX):
        return Device(ssh_device.SshConnection(target))
    if target.startswith(adb_device.PREFIX):
        return Device(adb_device.AdbConnection(target))
    raise RecipeError(
        f"device `{target}` is of no known kind", hint="write `local`, `ssh:USER@HOST[:PORT]` or `adb:SERIAL`"
    )


def describe_devices(named: Sequence[str]) -> dict[str, Any]:
    """Return the facts of this machine, of each phone that adb sees and of the devices in `named`.

    Of a phone that cannot be used, `error` says why; one that is named has to be usable.

    Raises:
        RecipeError: A name is malformed.
        EngineError: A named device cannot be reached or used.
    """
    rows = [_describe(local_device.NAME)]
    for phone in adb_device.attached() if adb_device.has_adb() else ():
        target = f"{adb_device.PREFIX}{phone.serial}"
        if target in named:
            continue
        try:
            rows.append(_describe(target))
        except EngineError as exc:
            rows.append({"name": target, "error": str(exc)})
    rows += [_describe(target) for target in dict.fromkeys(named) if target != local_device.NAME]
    return {"schema": SCHEMA, "devices": rows}


def _describe(target: str) -> dict[str, Any]:
    with open_device(target) as device:
        facts = read_facts(device)
    return {"name": device.name, **asdict(facts), "big_cores": list(facts.big_cores)}
