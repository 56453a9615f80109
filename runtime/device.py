"""A machine on which files run: this one, a board or a phone. Push, run under a time limit, pull, read, close.

All of it rests on one thing that local shells, `ssh` and `adb` have in common: a command that runs a POSIX shell script
over there, with its standard streams and its exit code here. Files travel as those streams. A file that arrives is
written under another name, counted and renamed, so that a lost connection leaves none that is half there.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from ammd.errors import EngineError

from .closing import ClosesItself

SHORT_S = 60.0  # a script that only looks at something
_PUSH_LEAST_S = 120.0
_SLOWEST_BYTES_PER_S = 250_000  # a push may be as slow as USB 1 with a poor cable
_MISSING = re.compile(r"(?:^|[:\s])([\w./-]+): (?:command not found|not found|inaccessible or not found)")
_FAULTS = (
    ("No space left on device", "has no space left", "free some space there"),
    ("Read-only file system", "has a read-only file system", "name another folder or remount it"),
    ("Permission denied", "does not permit it", "check who owns the folder, and that programs may run there"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """What a script left behind."""

    exit_code: int
    stdout: str
    stderr: str


class Connection(Protocol):
    """How scripts come to a machine."""

    name: str  # `local`, `ssh:user@host:port`, `adb:SERIAL`

    @property
    def folder_script(self) -> str:
        """A script that prints the folder for our files, made if need be."""

    def command(self, script: str) -> Sequence[str]:
        """Return the command that runs `script` there."""

    def settle(self, ran: Ran) -> Ran:
        """Return what the script itself left behind.

        Raises:
            EngineError: It was the connection that failed.
        """

    def close(self) -> None:
        """Give it up; what still runs there loses its standard input."""


class Device(ClosesItself):
    """A machine behind a connection; a context manager."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._folder = ""
        self.name = connection.name

    @property
    def folder(self) -> str:
        """The folder for our files, made when first asked for.

        Raises:
            EngineError: It cannot be made.
        """
        if not self._folder:
            said = self.ask(self._connection.folder_script, purpose="making a folder")
            self._folder = said.strip().rpartition("\n")[2]  # a login shell's greeting may come first
        return self._folder

    def run(
        self,
        script: str,
        *,
        limit_s: float = SHORT_S,
        source: Path | None = None,
        target: Path | None = None,
        held: bool = False,
    ) -> Ran:
        """Run a shell script and wait for it.

        Args:
            script: POSIX shell.
            limit_s: It is given up after this many seconds.
            source: File for its standard input; without one it has none.
            target: File for its standard output.
            held: Its standard input stays open, and ends when this process or the connection does.

        Raises:
            EngineError: The connection failed, or the time is up.
        """
        with contextlib.ExitStack() as stack:
            reader: BinaryIO | int = subprocess.DEVNULL
            if source:
                reader = stack.enter_context(source.open("rb"))
            elif held:
                reader = stack.enter_context(_lifeline())
            writer = stack.enter_context(target.open("wb")) if target else subprocess.PIPE
            # A session of its own: Ctrl-C reaches this process alone, which then ends the other in good order.
            process = subprocess.Popen(
                self._connection.command(script),
                stdin=reader,
                stdout=writer,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
            try:
                out, err = process.communicate(timeout=limit_s)
            except subprocess.TimeoutExpired as exc:
                raise EngineError(
                    f"`{self.name}` has not finished after {limit_s:.0f} s", hint="is it asleep, or too slow?"
                ) from exc
            finally:
                process.kill()
                process.wait()
                for stream in (process.stdout, process.stderr):
                    if stream:
                        stream.close()
        ran = Ran(exit_code=process.returncode, stdout=_text(out), stderr=_text(err))
        return self._connection.settle(ran)

    def ask(self, script: str, *, purpose: str, limit_s: float = SHORT_S) -> str:
        """Return what a script prints.

        Raises:
            EngineError: The connection or the script failed.
        """
        ran = self.run(script, limit_s=limit_s)
        if ran.exit_code:
            raise self.failure(ran, purpose=purpose)
        return ran.stdout

    def read(self, path: str) -> str:
        """Return a text file of the device.

        Raises:
            EngineError: It cannot be read.
        """
        return self.ask(f"cat {shlex.quote(path)}", purpose=f"reading `{path}`")

    def push(self, source: Path, target: str) -> None:
        """Copy a file to the device; it may be executed there.

        Raises:
            EngineError: It did not arrive whole; nothing is left of it then.
        """
        size, name, part = source.stat().st_size, shlex.quote(target), shlex.quote(f"{target}.part")
        script = (
            f"cat > {part} && [ $(($(wc -c < {part}))) -eq {size} ] && chmod 755 {part} && mv -f {part} {name} "
            f"|| {{ rm -f {part}; exit 1; }}"
        )
        limit_s = max(_PUSH_LEAST_S, size / _SLOWEST_BYTES_PER_S)
        ran = self.run(script, limit_s=limit_s, source=source)
        if ran.exit_code:
            raise self.failure(ran, purpose=f"copying `{source.name}`")

    def pull(self, source: str, target: Path) -> None:
        """Copy a file from the device.

        Raises:
            EngineError: It did not arrive; `target` is as it was.
        """
        part = target.with_name(f"{target.name}.part")
        try:
            ran = self.run(f"cat {shlex.quote(source)}", limit_s=_PUSH_LEAST_S, target=part)
            if ran.exit_code:
                raise self.failure(ran, purpose=f"fetching `{source}`")
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)

    def failure(self, ran: Ran, *, purpose: str) -> EngineError:
        """Return what a failed script amounts to, in one line."""
        for text, fault, hint in _FAULTS:
            if text in ran.stderr:
                return EngineError(f"`{self.name}` {fault}: {purpose}", hint=hint, device=self.name)
        missing = _MISSING.search(ran.stderr)
        if ran.exit_code == 127 and missing:
            command = missing[1]
            return EngineError(
                f"`{command}` is missing on `{self.name}`: {purpose}",
                hint=f"install `{command}` there",
                device=self.name,
            )
        last = ran.stderr.strip().rpartition("\n")[2] or f"exit code {ran.exit_code}"
        return EngineError(f"{purpose} on `{self.name}` failed: {last}", device=self.name)

    def close(self) -> None:
        """Give the connection up."""
        self._connection.close()


@contextlib.contextmanager
def _lifeline() -> Iterator[int]:
    """Give a pipe's end on which nothing comes, and which ends with the block, or with this process."""
    reader, writer = os.pipe()
    try:
        yield reader
    finally:
        os.close(reader)
        os.close(writer)


def _text(raw: bytes | None) -> str:
    return (raw or b"").decode("utf-8", errors="replace")
