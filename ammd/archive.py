"""Unpack chosen members of a downloaded wheel or source archive, trusting none of them.

Every member is looked at, also those that are not wanted: one unsafe name, link or device condemns the
archive as a whole. Names stay inside the target folder, nothing is written twice, and the bytes written are
counted, so that a small archive cannot fill the disk.
"""

from __future__ import annotations

import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from .artifact import check_relative
from .errors import ArtifactError

Pick = Callable[[str], str | None]
"""Maps a member's name to the path to write it to, relative to the target folder; None leaves it out."""

_CHUNK_BYTES = 1 << 20
_Member = tuple[str, Callable[[], IO[bytes]]]  # name, and how to open it


def unpack(archive: Path, folder: Path, *, pick: Pick, limit_bytes: int) -> int:
    """Write the members that `pick` names below `folder` and return how many bytes they have.

    Args:
        archive: A zip (`.whl`, `.zip`) or a compressed tar (`.tar.gz`).
        folder: An existing folder; after an error it may hold some members, so give a staging folder.
        pick: Chooses and names the members; its answers are checked as well.
        limit_bytes: The most that may be written in all.

    Raises:
        ArtifactError: The archive is damaged or of another kind; a member is a link or device, or has an
            unsafe or repeated name; or the members are larger than `limit_bytes`.
    """
    left = limit_bytes
    written: set[str] = set()
    try:
        for name, open_member in _members(archive):
            target = pick(name)
            if target is None:
                continue
            if target in written:
                raise ArtifactError(f"`{archive.name}` holds `{target}` twice", path=str(archive))
            written.add(target)
            with open_member() as source:
                left -= _write(source, folder / check_relative(target), limit_bytes=left)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as exc:
        raise ArtifactError(f"`{archive.name}` is damaged: {exc}", path=str(archive)) from exc
    except OSError as exc:
        raise ArtifactError(f"cannot unpack `{archive.name}`: {exc}", path=str(archive)) from exc
    return limit_bytes - left


def _members(archive: Path) -> Iterator[_Member]:
    if archive.name.endswith((".whl", ".zip")):
        yield from _zip_members(archive)
    elif archive.name.endswith((".tar.gz", ".tgz")):
        yield from _tar_members(archive)
    else:
        raise ArtifactError(f"`{archive.name}` is neither a wheel nor a .tar.gz", path=str(archive))


def _zip_members(archive: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(archive) as opened:
        for info in opened.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)  # 0 where the archive was made without Unix modes
            _check_member(archive, info.filename, is_plain=kind in (0, stat.S_IFREG, stat.S_IFDIR))
            if not info.is_dir():
                # mypy and the loop agree: each opener is used before the next member is asked for.
                yield info.filename, lambda info=info: opened.open(info)  # type: ignore[misc]


def _tar_members(archive: Path) -> Iterator[_Member]:
    with tarfile.open(archive, "r:gz") as opened:
        for info in opened:
            _check_member(archive, info.name, is_plain=info.isfile() or info.isdir())
            if info.isfile():
                yield info.name, lambda info=info: _present(opened.extractfile(info))  # type: ignore[misc]


def _present(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None  # tarfile gives None for members that are not regular files only
    return stream


def _check_member(archive: Path, name: str, *, is_plain: bool) -> None:
    check_relative(name)
    if not is_plain:
        raise ArtifactError(f"`{name}` in `{archive.name}` is a link or a device", path=name)


def _write(source: IO[bytes], target: Path, *, limit_bytes: int) -> int:
    target.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with target.open("xb") as sink:
        while chunk := source.read(_CHUNK_BYTES):
            count += len(chunk)
            if count > limit_bytes:
                raise ArtifactError(
                    f"`{target.name}` is larger than the {limit_bytes} bytes that may still be unpacked",
                    path=str(target),
                    limit=limit_bytes,
                )
            sink.write(chunk)
    return count
