"""The answers of one model to one task on the disk: a file of JSON lines that grows row by row and outlives a kill.

The first line says what was asked of which model; a file that begins otherwise is another's, and is never added to.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ammd.durable import writing_to
from ammd.errors import ArtifactError
from ammd.folder_lock import folder_lock

ROWS_NAME = "rows.jsonl"
SCHEMA = "ammd.task_rows/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What decides a model's answers; only those to the same go together."""

    model_sha256: str
    engine: str  # kind of engine, with the versions of the libraries that compute
    task_sha256: str  # of all that the task's file says
    rows_sha256: str  # of the questions with their references and choices
    code_version: int


_WORDS = {
    "model_sha256": "another model",
    "engine": "another engine or version of it",
    "task_sha256": "another version of the task",
    "rows_sha256": "other rows of the task",
    "code_version": "another version of ammd",
}


class RowsFile:
    """The file while it is held."""

    def __init__(self, path: Path, asked: Asked) -> None:
        """Read what is there, and cut off a line that a kill left half-written.

        Raises:
            ArtifactError: It holds the answers to something else, or is damaged.
        """
        self.path = path
        self.about: dict[str, Any] = {}  # of the engine that answered last
        self.records: list[dict[str, Any]] = []
        if not self._read(asked):
            self._append([{"schema": SCHEMA, **asdict(asked)}])

    def add(self, part: Mapping[str, Any]) -> None:
        """Add what a model said: facts about its engine, or `records`."""
        lines = list(part["records"]) if "records" in part else [{"about": dict(part)}]
        self._append(lines)
        for line in lines:
            self._take(line)

    def _take(self, line: dict[str, Any]) -> None:
        if "about" in line:
            self.about = line["about"]
        else:
            self.records.append(line)

    def _append(self, lines: Sequence[Mapping[str, Any]]) -> None:
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        with writing_to(self.path.parent), self.path.open("ab") as stream:
            stream.write(text.encode())

    def _read(self, asked: Asked) -> bool:
        """Take what the file holds; return whether it holds anything."""
        if not self.path.exists():
            return False
        with writing_to(self.path.parent), self.path.open("r+b") as stream:
            whole, end, _ = stream.read().rpartition(b"\n")
            stream.truncate(len(whole) + len(end))
        if not whole:
            return False
        try:
            first, *lines = map(json.loads, whole.decode().split("\n"))
            self._check(first, asked)
            for line in lines:
                self._take(line)
        except (ValueError, TypeError, AttributeError) as exc:
            raise ArtifactError(
                f"`{self.path}` is damaged: {exc}",
                hint="remove it; the model then answers anew",
                path=str(self.path),
            ) from exc
        return True

    def _check(self, first: Mapping[str, Any], asked: Asked) -> None:
        differs = [word for key, word in _WORDS.items() if first.get(key) != getattr(asked, key)]
        if first.get("schema") != SCHEMA or differs:
            raise ArtifactError(
                f"`{self.path}` holds answers of {differs[0] if differs else 'another schema'}",
                hint="name another folder with `--out`, or remove that file",
                path=str(self.path),
            )


@contextmanager
def open_rows(folder: Path, asked: Asked) -> Iterator[RowsFile]:
    """Hold a folder and give the answers in it; another process that works there is waited for.

    Raises:
        ArtifactError: The folder cannot be written, or holds the answers to something else.
    """
    with folder_lock(folder, wait=True):
        yield RowsFile(folder / ROWS_NAME, asked)
