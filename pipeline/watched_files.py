"""Files that a run goes by: noticed when somebody changes them before the stage that reads them has ended."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ammd.errors import ArtifactError

Signature = tuple[int, int, int] | None


class WatchedFiles:
    """What was hashed, with size, time and place on the disk as they were before that."""

    def __init__(self) -> None:
        self._seen: dict[Path, Signature] = {}

    def add(self, paths: Iterable[Path]) -> None:
        """Watch files from now on, or anew."""
        self._seen.update({path: _signature(path) for path in paths})

    def check(self, *, stage: str) -> None:
        """Check that all are as they were, now that `stage` has read what it needs.

        Raises:
            ArtifactError: Names the first that is not.
        """
        for path, before in self._seen.items():
            if (now := _signature(path)) != before:
                what = "was changed" if now else "was removed"
                raise ArtifactError(
                    f"`{path}` {what} while stage `{stage}` was at work, so its result is not kept",
                    hint="`ammd run` again goes by what lies there then",
                    path=str(path),
                )


def _signature(path: Path) -> Signature:
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_size, facts.st_mtime_ns, facts.st_ino
