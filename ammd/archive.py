"""Unpack chosen members of a wheel, a source archive or a bundle, trusting none of them.

Every member is looked at, also those that are not wanted: one unsafe name, link or device condemns the
archive as a whole. Names stay inside the target folder, nothing is written twice, also not where case and the form of
accents do not count, and members and the bytes written are counted, so that a small archive cannot fill the disk.
Nor can it fill the memory: a header that claims to be long is not read.
"""

from __future__ import annotations

import gzip
import io
import stat
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from .artifact import check_relative
from .errors import ArtifactError
from .zstd import ZstdError, ZstdFile

Pick = Callable[[str], str | None]
"""Maps a member's name to the path to write it to, relative to the target folder; None leaves it out."""

_CHUNK_BYTES = 1 << 20
_LONGEST_READ = 4 << 20  # of a tar at once; longer are only headers that no real archive has
_MOST_MEMBERS = 100_000
_DAMAGES = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    zlib.error,
    ZstdError,
    EOFError,
    NotImplementedError,
    ValueError,  # numbers in a tar's extended headers
    RecursionError,  # headers of headers
)
_Stream = gzip.GzipFile | ZstdFile
_Member = tuple[str, Callable[[], IO[bytes]]]  # name, and how to open it


def unpack(archive: Path, folder: Path, *, pick: Pick, limit_bytes: int) -> int:
    """Write the members that `pick` names below `folder` and return how many bytes they have.

    Args:
        archive: A zip (`.whl`, `.zip`) or a compressed tar (`.tar.gz`, `.tar.zst`).
        folder: An existing folder; after an error it may hold some members, so give a staging folder.
        pick: Chooses and names the members; its answers are checked as well.
        limit_bytes: The most that may be written in all.

    Raises:
        ArtifactError: The archive is damaged or of another kind; a member is a link or device, or has an
            unsafe or repeated name; or the members are too many, or larger than `limit_bytes`.
    """
    left = limit_bytes
    names = Names()
    try:
        for name, open_member in _members(archive):
            target = pick(name)
            if target is None:
                continue
            names.claim(target, holder=archive)
            with open_member() as source:
                left -= _write(source, folder / target, limit_bytes=left)
    except _DAMAGES as exc:
        raise ArtifactError(f"`{archive.name}` is damaged: {exc}", path=str(archive)) from exc
    except OSError as exc:
        raise ArtifactError(f"cannot unpack `{archive.name}`: {exc}", path=str(archive)) from exc
    return limit_bytes - left


def _members(archive: Path) -> Iterator[_Member]:
    if archive.name.endswith((".whl", ".zip")):
        yield from _zip_members(archive)
    elif archive.name.endswith((".tar.gz", ".tgz", ".tar.zst")):
        yield from _tar_members(archive)
    else:
        raise ArtifactError(
            f"`{archive.name}` is neither a wheel nor a .tar.gz or .tar.zst", path=str(archive)
        )


def _zip_members(archive: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(archive) as opened:
        for count, info in enumerate(opened.infolist(), 1):
            kind = stat.S_IFMT(info.external_attr >> 16)  # 0 where the archive was made without Unix modes
            is_plain = kind in (0, stat.S_IFREG, stat.S_IFDIR)
            _check_member(archive, info.filename, count=count, is_plain=is_plain)
            if not info.is_dir():
                # mypy and the loop agree: each opener is used before the next member is asked for.
                yield info.filename, lambda info=info: opened.open(info)  # type: ignore[misc]


def _tar_members(archive: Path) -> Iterator[_Member]:
    with _decompressed(archive) as stream, tarfile.open(fileobj=_Careful(stream), mode="r:") as opened:
        for count, info in enumerate(opened, 1):
            is_plain = (info.isfile() and info.size >= 0) or info.isdir()
            _check_member(archive, info.name, count=count, is_plain=is_plain)
            if info.isfile():
                yield info.name, lambda info=info: _present(opened.extractfile(info))  # type: ignore[misc]


@contextmanager
def _decompressed(archive: Path) -> Iterator[_Stream]:
    with archive.open("rb") as source:
        if archive.name.endswith(".zst"):
            with ZstdFile(source) as stream:
                yield stream
        else:
            with gzip.GzipFile(fileobj=source) as stream:
                yield stream


class _Careful(io.RawIOBase):
    """A tar's bytes for tarfile, which reads the headers of a member whole, whatever length they claim."""

    def __init__(self, stream: _Stream) -> None:
        self._stream = stream

    def read(self, size: int = -1, /) -> bytes:
        if not 0 <= size <= _LONGEST_READ:
            raise tarfile.ReadError(f"a header claims {size} bytes")
        return self._stream.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def seekable(self) -> bool:
        return True


def _present(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None  # tarfile gives None for members that are not regular files only
    return stream


def _check_member(archive: Path, name: str, *, count: int, is_plain: bool) -> None:
    check_relative(name)
    if not is_plain:
        raise ArtifactError(f"`{name}` in `{archive.name}` is a link or a device", path=name)
    if count > _MOST_MEMBERS:
        raise ArtifactError(f"`{archive.name}` has more than {_MOST_MEMBERS} members", path=str(archive))


class Names:
    """Files and folders of one tree, as systems see them for which case and the form of accents do not count."""

    def __init__(self) -> None:
        self._spelled: dict[str, str] = {}
        self._files: set[str] = set()

    def claim(self, file: str, *, holder: Path) -> None:
        """Note a file of `holder`.

        Raises:
            ArtifactError: Its name is unsafe, or there is a file of this name already, or of one that is the same to
                some systems.
        """
        path = PurePosixPath(check_relative(file))
        for name in map(str, (*path.parents[:-1], path)):
            known = self._spelled.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
            if known != name:
                raise ArtifactError(
                    f"`{holder.name}` holds `{known}` and `{name}`, which are one on many systems",
                    path=str(holder),
                )
        if str(path) in self._files:
            raise ArtifactError(f"`{holder.name}` holds `{path}` twice", path=str(holder))
        self._files.add(str(path))


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
