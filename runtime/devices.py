"""Devices by the names that users give them: `local`, `ssh:USER@HOST[:PORT]`, `adb:SERIAL`."""

from __future__ import annotations

from ammd.errors import RecipeError

from . import local_device, ssh_device
from .device import Device


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
    raise RecipeError(
        f"device `{target}` is of no known kind", hint="write `local`, `ssh:USER@HOST[:PORT]` or `adb:SERIAL`"
    )
