from __future__ import annotations

import gzip
import io
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from ammd.archive import unpack
from ammd.errors import ArtifactError
from ammd.zstd import ZstdFile

LIMIT = 1 << 20


def _zip(path: Path, members: dict[str, bytes], *, mode: int = 0) -> Path:
    with zipfile.ZipFile(path, "w") as opened:
        for name, data in members.items():
            info = zipfile.ZipInfo(name)
            info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, mode << 16
            opened.writestr(info, data)
    return path


def _tar(
    path: Path, members: dict[str, bytes], change: Callable[[tarfile.TarInfo], None] | None = None
) -> Path:
    compressed = ZstdFile if path.suffix == ".zst" else gzip.GzipFile
    with compressed(path, "wb") as stream, tarfile.open(fileobj=stream, mode="w") as opened:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if change:
                change(info)
            opened.addfile(info, io.BytesIO(data))
    return path


def _out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


@pytest.mark.parametrize(("make", "name"), [(_zip, "a.whl"), (_tar, "a.tar.gz"), (_tar, "a.tar.zst")])
def test_picked_members_are_written_under_their_new_names(
    tmp_path: Path, make: Callable[..., Path], name: str
) -> None:
    archive = make(tmp_path / name, {"top/a.txt": b"A" * 3000, "top/sub/b.txt": b"B", "top/no": b"C"})
    folder = _out(tmp_path)
    written = unpack(
        archive,
        folder,
        pick=lambda member: member.removeprefix("top/") if member.endswith(".txt") else None,
        limit_bytes=LIMIT,
    )
    assert written == 3001
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.*")}
    assert found == {"a.txt": b"A" * 3000, "sub/b.txt": b"B"}


@pytest.mark.parametrize(
    "member", ["/abs", "../up", "a/../../up", "back\\slash", "C:x", "./C:x", "a:b", "bell\a"]
)
@pytest.mark.parametrize(("make", "name"), [(_zip, "a.zip"), (_tar, "a.tar.gz"), (_tar, "a.tar.zst")])
def test_unsafe_member_condemns_the_archive_even_if_not_picked(
    tmp_path: Path, make: Callable[..., Path], name: str, member: str
) -> None:
    archive = make(tmp_path / name, {member: b"x", "good": b"y"})
    with pytest.raises(ArtifactError, match="unsafe file name"):
        unpack(
            archive, _out(tmp_path), pick=lambda found: found if found == "good" else None, limit_bytes=LIMIT
        )
    assert not (tmp_path / "up").exists()


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
)
def test_link_or_device_in_a_tar_is_refused(tmp_path: Path, kind: bytes) -> None:
    def change(info: tarfile.TarInfo) -> None:
        info.type, info.linkname, info.size = kind, "/etc/passwd", 0

    archive = _tar(tmp_path / "a.tar.gz", {"member": b""}, change)
    with pytest.raises(ArtifactError, match=r"`member` in `a\.tar\.gz` is a link or a device"):
        unpack(archive, _out(tmp_path), pick=lambda _: None, limit_bytes=LIMIT)


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_link_or_device_in_a_zip_is_refused(tmp_path: Path, kind: int) -> None:
    archive = _zip(tmp_path / "a.whl", {"member": b"/etc/passwd"}, mode=kind | 0o777)
    with pytest.raises(ArtifactError, match="is a link or a device"):
        unpack(archive, _out(tmp_path), pick=lambda _: None, limit_bytes=LIMIT)


@pytest.mark.parametrize(("make", "name"), [(_zip, "a.whl"), (_tar, "a.tar.gz"), (_tar, "a.tar.zst")])
def test_archive_that_would_fill_the_disk_is_stopped_at_the_limit(
    tmp_path: Path, make: Callable[..., Path], name: str
) -> None:
    archive = make(tmp_path / name, {"one": b"0" * 600_000, "two": b"0" * 600_000})
    assert archive.stat().st_size < 10_000
    folder = _out(tmp_path)
    with pytest.raises(ArtifactError, match=r"larger than the .* bytes that may still be unpacked"):
        unpack(archive, folder, pick=lambda member: member, limit_bytes=LIMIT)
    assert sum(path.stat().st_size for path in folder.iterdir()) <= LIMIT


def test_two_members_for_one_file_are_refused(tmp_path: Path) -> None:
    archive = _zip(tmp_path / "a.whl", {"a/x": b"1", "b/x": b"2"})
    with pytest.raises(ArtifactError, match="holds `x` twice"):
        unpack(archive, _out(tmp_path), pick=lambda member: Path(member).name, limit_bytes=LIMIT)


def test_answer_of_pick_is_checked_too(tmp_path: Path) -> None:
    archive = _zip(tmp_path / "a.whl", {"a": b"1"})
    with pytest.raises(ArtifactError, match="unsafe file name"):
        unpack(archive, _out(tmp_path), pick=lambda member: f"../{member}", limit_bytes=LIMIT)


@pytest.mark.parametrize(("make", "name"), [(_zip, "a.whl"), (_tar, "a.tar.gz"), (_tar, "a.tar.zst")])
def test_truncated_archive_is_refused(tmp_path: Path, make: Callable[..., Path], name: str) -> None:
    archive = make(tmp_path / name, {"a": bytes(range(256)) * 40})
    archive.write_bytes(archive.read_bytes()[:-40])
    with pytest.raises(ArtifactError, match="is damaged"):
        unpack(archive, _out(tmp_path), pick=lambda member: member, limit_bytes=LIMIT)


def test_altered_zip_member_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "a.whl"
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("a", b"the original text")
    archive.write_bytes(archive.read_bytes().replace(b"original", b"0riginal"))
    with pytest.raises(ArtifactError, match="is damaged"):
        unpack(archive, _out(tmp_path), pick=lambda member: member, limit_bytes=LIMIT)


def test_other_kind_of_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.rar"
    path.write_bytes(b"x")
    with pytest.raises(ArtifactError, match="neither a wheel nor a"):
        unpack(path, _out(tmp_path), pick=lambda member: member, limit_bytes=LIMIT)


def test_missing_archive_is_an_artifact_error(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"cannot unpack `a\.whl`"):
        unpack(tmp_path / "a.whl", _out(tmp_path), pick=lambda member: member, limit_bytes=LIMIT)


@pytest.mark.parametrize(
    ("first", "second"),
    [("Model", "model"), ("a/X/1", "a/x/2"), ("caf\u00e9", "cafe\u0301"), ("Stra\u00dfe", "STRASSE")],
)
def test_names_that_are_one_on_some_systems_are_refused(tmp_path: Path, first: str, second: str) -> None:
    archive = _tar(tmp_path / "a.tar.zst", {first: b"1", second: b"2"})
    with pytest.raises(ArtifactError, match="which are one on many systems"):
        unpack(archive, _out(tmp_path), pick=lambda member: member, limit_bytes=LIMIT)


def _bomb(path: Path, header: tarfile.TarInfo, size: int) -> Path:
    """Write a tar whose first header claims `size` bytes, all of them zeros that compress to next to nothing."""
    header.size = size
    with ZstdFile(path, "wb") as stream:
        stream.write(header.tobuf(tarfile.GNU_FORMAT))
        for _ in range(min(size, 64 << 20) >> 20):
            stream.write(bytes(1 << 20))
    return path


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGLINK])
@pytest.mark.parametrize("size", [64 << 20, 1 << 40, -1024])
def test_long_headers_are_not_read(tmp_path: Path, kind: bytes, size: int) -> None:
    header = tarfile.TarInfo("long")
    header.type = kind
    archive = _bomb(tmp_path / "a.tar.zst", header, size)
    with pytest.raises(ArtifactError, match=r"is damaged: a header claims -?\d+ bytes"):
        unpack(archive, _out(tmp_path), pick=lambda member: member, limit_bytes=LIMIT)


def test_a_member_of_negative_size_is_refused(tmp_path: Path) -> None:
    archive = _bomb(tmp_path / "a.tar.zst", tarfile.TarInfo("back"), -1024)
    with pytest.raises(ArtifactError):
        unpack(archive, _out(tmp_path), pick=lambda member: member, limit_bytes=LIMIT)


def test_a_great_many_members_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ammd.archive._MOST_MEMBERS", 10)
    archive = _tar(tmp_path / "a.tar.zst", {f"m{index}": b"" for index in range(11)})
    with pytest.raises(ArtifactError, match="has more than 10 members"):
        unpack(archive, _out(tmp_path), pick=lambda member: member, limit_bytes=LIMIT)


def test_a_chain_of_headers_is_refused(tmp_path: Path) -> None:
    header = tarfile.TarInfo("long")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 1
    path = tmp_path / "a.tar.zst"
    with ZstdFile(path, "wb") as stream:
        stream.write((header.tobuf(tarfile.GNU_FORMAT) + bytes(512)) * 5000)
    with pytest.raises(ArtifactError, match="is damaged"):
        unpack(path, _out(tmp_path), pick=lambda member: member, limit_bytes=LIMIT)
