"""A board, a laptop or Termux, through the system's own OpenSSH client.

One connection is opened and shared by all that follows (a control socket in a folder of its own). Nobody is asked
anything: keys, users, ports and known hosts come from the user's ssh configuration, and an unknown host key is refused.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from ammd.errors import EngineError, RecipeError
from ammd.scratch import scratch_folder

from .device import Ran

PREFIX = "ssh:"
_CONNECT_S = 15
_LOST = 255  # what ssh ends with when it is the connection that failed
_POLL_S = 0.05
_DEATH_S = 2.0
_TARGET = re.compile(
    r"(?:(?P<user>[\w.+-]+)@)?(?P<host>\[[0-9A-Fa-f:.%\w]+\]|[\w.-]+)(?::(?P<port>\d{1,5}))?"
)
# What ssh says, in the order in which it is looked for: what that means, what to do.
_FAULTS = (
    ("IDENTIFICATION HAS CHANGED", "has another host key than before", "find out why before you go on"),
    ("Host key verification failed", "has a host key that is not known", "connect once by hand with `ssh`"),
    ("Connection refused", "refuses the connection", "is sshd running there, and is the port right?"),
    ("Permission denied", "lets this user not in", "a key without a password is needed: `ssh-copy-id`"),
    ("Could not resolve", "is no host that this machine knows", "check the name, or give the address"),
    ("timed out", "does not answer", "check the address and the network"),
    ("No route to host", "cannot be reached", "check the address and the network"),
)


class SshConnection:
    """Runs scripts on a host. Implements `Connection`."""

    folder_script = 'd="${XDG_CACHE_HOME:-$HOME/.cache}/ammd" && mkdir -p "$d" && cd "$d" && pwd'

    def __init__(self, target: str) -> None:
        """Connect to `ssh:[USER@]HOST[:PORT]`.

        Raises:
            RecipeError: The target is malformed.
            EngineError: There is no ssh, or the host cannot be reached or refuses.
        """
        self.name = target
        self._destination = _destination(target)
        ssh = shutil.which("ssh")
        if ssh is None:
            raise EngineError("there is no `ssh` on this machine", hint="install OpenSSH's client")
        self._folder = ExitStack()  # one that the next of our processes sweeps, if this one is killed
        socket = self._folder.enter_context(scratch_folder()) / "socket"
        self._ssh = [
            ssh,
            "-T",
            "-o",
            "BatchMode=yes",
            "-o",
            f"ControlPath={socket}",
            "-o",
            "RemoteCommand=none",
        ]
        self._log = tempfile.TemporaryFile(prefix="ammd-ssh-")  # noqa: SIM115 - lives as long as the connection
        self._master: subprocess.Popen[bytes] | None = None
        try:
            self._connect(socket)
        except BaseException:
            self.close()
            raise

    def _connect(self, socket: Path) -> None:
        options = {
            "ControlMaster": "yes",
            "ControlPersist": "no",
            "ConnectTimeout": _CONNECT_S,
            "ServerAliveInterval": 5,
            "ServerAliveCountMax": 3,
            "ClearAllForwardings": "yes",
        }
        flags = [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
        # `cat` there ends with this process, however that ends, and the connection with it.
        self._master = subprocess.Popen(
            [*self._ssh, *flags, *self._destination, "cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._log,
            env={**os.environ, "LC_ALL": "C"},
            start_new_session=True,
        )
        # Connecting has its own limit, but a key that has to be touched, say, has none.
        for _ in range(int(4 * _CONNECT_S / _POLL_S)):
            if socket.exists():
                return
            if self._master.poll() is not None:
                break
            time.sleep(_POLL_S)
        raise self._refusal()

    def command(self, script: str) -> Sequence[str]:
        """Return the command that runs `script` there."""
        shared = [*self._ssh, "-o", "ControlMaster=no"]
        return [*shared, *self._destination, f"sh -c {shlex.quote(script)}"]

    def settle(self, ran: Ran) -> Ran:
        """Return what the script itself left behind.

        Raises:
            EngineError: The connection has ended.
        """
        if ran.exit_code != _LOST or self._master is None:
            return ran
        try:
            self._master.wait(_DEATH_S)
        except subprocess.TimeoutExpired:
            return ran  # the script's own exit code
        hint = "what ran there has been ended; files that are whole stay for the next time"
        raise EngineError(f"the connection to `{self.name}` was lost", hint=hint, device=self.name)

    def close(self) -> None:
        """End the connection and all that goes through it."""
        if self._master is not None:
            if self._master.stdin:
                self._master.stdin.close()
            self._master.terminate()
            try:
                self._master.wait(_DEATH_S)
            except subprocess.TimeoutExpired:
                self._master.kill()
                self._master.wait()
        self._log.close()
        self._folder.close()

    def _refusal(self) -> EngineError:
        self._log.seek(0)
        said = self._log.read().decode("utf-8", errors="replace")
        for text, fault, hint in _FAULTS:
            if text in said:
                return EngineError(f"`{self.name}` {fault}", hint=hint, device=self.name)
        last = said.strip().rpartition("\n")[2] or "no answer"
        return EngineError(f"cannot connect to `{self.name}`: {last}", device=self.name)


def _destination(target: str) -> list[str]:
    found = _TARGET.fullmatch(target.removeprefix(PREFIX))
    # What begins with a dash ssh would take for an option.
    if found is None or any(part.startswith("-") for part in (found["user"] or "", found["host"])):
        raise RecipeError(
            f"device `{target}` is malformed", hint="write `ssh:USER@HOST` or `ssh:USER@HOST:PORT`"
        )
    port = ["-p", found["port"]] if found["port"] else []
    host = found["host"].strip("[]")
    return [*port, f"{found['user']}@{host}" if found["user"] else host]
