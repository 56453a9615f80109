"""A phone, through the stock `adb` client and its server (`ADB_SERVER_SOCKET` names another one).

Files lie in /data/local/tmp, the one place where a shell may both write and execute. Scripts go through `adb shell`,
which some versions end with 0 when the cable is pulled; so each script says its exit code at its end, and one that
does not has been cut off.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from ammd.errors import EngineError, RecipeError

from .device import SHORT_S, Ran

PREFIX = "adb:"
READY = "device"
_END = "@@ammd-exit "
_SERIAL = re.compile(r"[\w.:-]*")
# What adb calls a state: what that means, what to do.
_STATES = {
    "unauthorized": ("has not allowed this computer to debug it", "unlock it and confirm on its screen"),
    "offline": ("is offline", "plug it in again, or restart `adb`"),
    "no permissions": ("may not be opened by this user", "install Android's udev rules, or use another user"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Attached:
    """A line of `adb devices`."""

    serial: str
    state: str  # `device` where it can be used


class AdbConnection:
    """Runs scripts on a phone. Implements `Connection`."""

    folder_script = "mkdir -p /data/local/tmp/ammd && echo /data/local/tmp/ammd"

    def __init__(self, target: str) -> None:
        """Choose the phone that `adb:SERIAL` names; `adb:` is the only one that is attached.

        Raises:
            RecipeError: The target is malformed, or names none of several.
            EngineError: There is no adb, no such phone, or it may not be used.
        """
        serial = target.removeprefix(PREFIX)
        if not _SERIAL.fullmatch(serial) or serial.startswith("-"):
            raise RecipeError(
                f"device `{target}` is malformed", hint="write `adb:SERIAL`; `adb devices` shows it"
            )
        phone = _choose(serial)
        self.name = f"{PREFIX}{phone.serial}"
        if phone.state != READY:
            known = next((facts for state, facts in _STATES.items() if phone.state.startswith(state)), None)
            fault, hint = known or (f"is in the state `{phone.state}`", "start it up as usual")
            raise EngineError(f"`{self.name}` {fault}", hint=hint, device=self.name)
        self._command = [_adb(), "-s", phone.serial, "shell", "-T"]

    def command(self, script: str) -> Sequence[str]:
        """Return the command that runs `script` there and then says its exit code."""
        return [*self._command, f"( {script}\n); c=$?; echo '{_END}'$c >&2; exit $c"]

    def settle(self, ran: Ran) -> Ran:
        """Return what the script itself left behind.

        Raises:
            EngineError: It was cut off.
        """
        said, end, code = ran.stderr.rpartition(_END)
        if not end or not code.strip().isdecimal():
            last = ran.stderr.strip().rpartition("\n")[2]
            raise EngineError(
                f"the connection to `{self.name}` was lost" + (f": {last}" if last else ""),
                hint="was it unplugged? what ran there has been ended; files that are whole stay for the next time",
                device=self.name,
            )
        return Ran(exit_code=int(code), stdout=ran.stdout, stderr=said)

    def close(self) -> None:
        """Do nothing: adb's server keeps the connection for the next one."""


def attached() -> tuple[Attached, ...]:
    """Return the phones that adb sees, usable or not.

    Raises:
        EngineError: There is no adb, or it cannot reach its server.
    """
    try:
        done = subprocess.run(
            [_adb(), "devices"], capture_output=True, text=True, check=False, timeout=SHORT_S
        )
    except subprocess.TimeoutExpired as exc:
        raise EngineError("`adb devices` does not answer", hint="`adb kill-server` helps at times") from exc
    if done.returncode:
        last = (done.stderr or done.stdout).strip().rpartition("\n")[2]
        raise EngineError(f"`adb devices` failed: {last}")
    _, _, lines = done.stdout.partition("List of devices attached\n")
    rows = (line.partition("\t") for line in lines.splitlines() if "\t" in line)
    return tuple(Attached(serial=serial.strip(), state=state.strip()) for serial, _, state in rows)


def has_adb() -> bool:
    """Tell whether there is an `adb`."""
    return shutil.which("adb") is not None


def _choose(serial: str) -> Attached:
    phones = attached()
    if not serial and len(phones) > 1:
        names = ", ".join(f"`{PREFIX}{phone.serial}`" for phone in phones)
        raise RecipeError(
            f"{len(phones)} phones are attached and none is named: {names}", hint="name one of them"
        )
    found = next((phone for phone in phones if serial in ("", phone.serial)), None)
    if found is None:
        fault = f"`{PREFIX}{serial}` is not attached" if serial else "no phone is attached"
        raise EngineError(fault, hint="plug it in, with USB debugging on in its developer options")
    return found


def _adb() -> str:
    adb = shutil.which("adb")
    if adb is None:
        raise EngineError("there is no `adb` on this machine", hint="install Android's platform tools")
    return adb
