"""Writing that a killed process, a lost power supply or a full disk leaves whole or undone.

A file is written under another name, flushed to the disk and renamed into place. What the system says of a disk that
is full reaches us in many forms, from Python's own error to a line in a converter's log; here it becomes one sentence.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .errors import ArtifactError

TEMPORARY_SUFFIX = ".tmp"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_TEXTS = ("No space left on device", "Disk quota exceeded", "os error 28)", "os error 122)")
_NO_FLUSH = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)  # of folders on some network file systems


def write_text(path: Path, text: str) -> None:
    """Write a file in UTF-8, so that whoever reads `path`, now or after a crash, sees the old text or the new one.

    Raises:
        OSError: It cannot be written; `path` is then as it was.
    """
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
    try:
        with temporary.open("x", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


def flush_tree(path: Path) -> None:
    """Flush a file, or every file and folder below one, so that no name stands for bytes that are not there."""
    if path.is_file():
        _flush_file(path)
    for place, _, names in os.walk(path, topdown=False):
        for file in (Path(place, name) for name in names):
            if file.is_file():  # a link may lead nowhere
                _flush_file(file)
        flush_folder(Path(place))


def flush_folder(folder: Path) -> None:
    """Flush the names in a folder, where its file system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as exc:
        if exc.errno not in _NO_FLUSH:
            raise
    finally:
        os.close(descriptor)


def _flush_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make a folder with those above it that are missing, each flushed into the one that holds it."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        flush_folder(path.parent)


def is_disk_full(error: BaseException | None) -> bool:
    """Tell whether an error, one that it came from, or the text of either says that there is no space left."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        if any(text in str(error) for text in _FULL_TEXTS):
            return True
        error = error.__cause__ or error.__context__
    return False


def disk_full(*folders: Path, doing: str) -> ArtifactError:
    """Return the error of a disk that is full: of the folders that were written to, that with the least room."""
    room = {folder: _free_bytes(folder) for folder in (*folders, Path(tempfile.gettempdir()))}
    folder = min(room, key=room.__getitem__)
    return ArtifactError(
        f"no space left on the disk of `{folder}` while {doing}",
        hint="free some space there; `ammd run` again goes on from what is finished",
        path=str(folder),
        found=room[folder],
    )


def write_fault(error: OSError, folder: Path) -> ArtifactError:
    """Return the error of a folder that cannot be written."""
    if is_disk_full(error):
        return disk_full(folder, doing="writing there")
    return ArtifactError(f"cannot write to `{folder}`: {error.strerror or error}", path=str(folder))


@contextlib.contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Turn an error of the system into one that names the folder.

    Raises:
        ArtifactError: The folder cannot be written.
    """
    try:
        yield
    except OSError as exc:
        raise write_fault(exc, folder) from exc


def _free_bytes(folder: Path) -> int:
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    try:
        return shutil.disk_usage(existing).free
    except OSError:
        return 0
