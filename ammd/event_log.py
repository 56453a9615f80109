"""What happens in a run: a file of JSON objects, one a line, that its processes append to and others read as it grows.

The file is opened and closed for each line: on a network file system closing is what shows the line to other machines,
and a whole line in one system call does not get mixed with another process's. The log is for looking at: what cannot
be written to it is left out, and the run goes on.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

ENVIRONMENT = "AMMD_EVENT_LOG"  # the log of the run that a stage's process belongs to
Event = dict[str, Any]  # has `event`, its name, and `time`, seconds since 1970


class EventLog:
    """The writing side."""

    def __init__(self, path: Path) -> None:
        """Append to `path`."""
        self._path = path

    @classmethod
    def of_this_process(cls) -> EventLog | None:
        """Return the log of the run that started this process, or None."""
        path = os.environ.get(ENVIRONMENT)
        return cls(Path(path)) if path else None

    def write(self, event: str, **facts: object) -> None:
        """Append one event; facts are JSON values."""
        entry = {"event": event, "time": round(time.time(), 3), **facts}
        self._append(json.dumps(entry, ensure_ascii=False) + "\n")

    def end_line(self) -> None:
        """End the line that a killed process may have left half-written."""
        with contextlib.suppress(OSError), self._path.open("rb") as stream:
            stream.seek(-1, os.SEEK_END)
            if stream.read(1) != b"\n":
                self._append("\n")

    def _append(self, text: str) -> None:
        with contextlib.suppress(OSError), self._path.open("ab", buffering=0) as stream:
            stream.write(text.encode("utf-8", "replace"))


class EventReader:
    """The reading side: gives what has come since it was last asked."""

    def __init__(self, path: Path) -> None:
        """Read `path`, which need not be there yet."""
        self._path = path
        self._offset = 0

    def read(self) -> list[Event]:
        """Return new events; a line that is not whole yet waits, one that is no event is left out."""
        try:
            with self._path.open("rb") as stream:
                stream.seek(self._offset)
                text = stream.read()
        except OSError:
            return []
        whole = text[: text.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [event for line in whole.split(b"\n") if (event := _parse(line)) is not None]


def _parse(line: bytes) -> Event | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    is_event = isinstance(found, dict) and isinstance(found.get("event"), str)
    return found if is_event and isinstance(found.get("time"), int | float) else None
