"""A folder as one `.tar.zst` that is the same to the byte wherever and whenever it is made.

Members are sorted; owner, mode and time are fixed; one thread compresses at a fixed level. Another release of the zstd
library may compress otherwise, so what is hashed and signed are the members.
"""

from __future__ import annotations

import tarfile
from pathlib import Path

from ammd.archive import unpack
from ammd.errors import ArtifactError
from ammd.machine import check_free_disk
from ammd.zstd import CompressionParameter, ZstdFile

SUFFIX = ".tar.zst"
_LEVEL = 9  # weights hardly get smaller at a higher one
_FILE_MODE, _FOLDER_MODE = 0o644, 0o755
# A bundle unpacks to little more than itself, its texts to a few times as much.
_UNPACKED_PER_BYTE, _UNPACKED_AT_LEAST = 20, 1 << 30


def write_archive(folder: Path, archive: Path, *, top: str, epoch: int) -> None:
    """Write the files of `folder` as members below the folder `top`.

    Args:
        folder: To pack.
        archive: To write.
        top: Name of the one folder that the archive unpacks to.
        epoch: Time of every member, in seconds.
    """
    options: dict[int, int] = {
        CompressionParameter.compression_level: _LEVEL,
        CompressionParameter.nb_workers: 0,
    }
    with (
        ZstdFile(archive, "wb", options=options) as stream,
        tarfile.open(fileobj=stream, mode="w:", format=tarfile.PAX_FORMAT) as opened,
    ):
        for path in (
            folder,
            *sorted(folder.rglob("*"), key=lambda path: path.relative_to(folder).as_posix()),
        ):
            member = tarfile.TarInfo((Path(top) / path.relative_to(folder)).as_posix())
            member.mtime = epoch
            if path.is_dir():
                member.type, member.mode = tarfile.DIRTYPE, _FOLDER_MODE
                opened.addfile(member)
                continue
            member.mode, member.size = _FILE_MODE, path.stat().st_size
            with path.open("rb") as source:
                opened.addfile(member, source)


def unpack_archive(archive: Path, folder: Path) -> None:
    """Write the members of a bundle into the existing, empty `folder`, without the one folder that they are in.

    Raises:
        ArtifactError: It is damaged, holds what no bundle holds, or is larger unpacked than bundles are or the disk
            has room for.
    """
    if not archive.is_file():
        raise ArtifactError(f"no bundle at `{archive}`", path=str(archive))
    limit = max(_UNPACKED_AT_LEAST, _UNPACKED_PER_BYTE * archive.stat().st_size)
    check_free_disk(folder, need_bytes=archive.stat().st_size, purpose=f"`{archive.name}`, unpacked,")
    tops: set[str] = set()

    def below_top(name: str) -> str:
        top, _, rest = name.partition("/")
        tops.add(top)
        if not rest or len(tops) > 1:
            raise ArtifactError(f"`{archive.name}` does not hold one folder: `{name}`", path=str(archive))
        return rest

    unpack(archive, folder, pick=below_top, limit_bytes=limit)
