"""The unpacker on generated archives: what is right comes out as it went in, anything else is refused by name."""

from __future__ import annotations

import contextlib
import io
import tarfile
import tempfile
import unicodedata
from pathlib import Path, PurePosixPath

from hypothesis import given, settings
from hypothesis import strategies as st

from ammd.archive import unpack
from ammd.errors import ArtifactError
from ammd.zstd import ZstdFile

LIMIT = 4096
GENERATED = settings(max_examples=300, deadline=None, derandomize=True, database=None)
PARTS = (
    "a",
    "A",
    "b",
    "model.gguf",
    "é",
    "e\u0301",
    "E\u0301",
    "ß",
    "..",
    ".",
    "",
    "C:",
    "x\\y",
    "line\nbreak",
)
KINDS = (tarfile.REGTYPE, tarfile.REGTYPE, tarfile.REGTYPE, tarfile.DIRTYPE)
LINKS = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)

names = st.lists(st.sampled_from(PARTS), min_size=1, max_size=3).map("/".join)
kinds = st.sampled_from(KINDS) | st.sampled_from(LINKS)
contents = st.binary(max_size=40) | st.just(b"0" * (LIMIT + 1))
members = st.lists(st.tuples(names, kinds, contents), min_size=1, max_size=4)


def _tar(rows: list[tuple[str, bytes, bytes]], form: int) -> bytes:
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode="w", format=form) as opened:
        for name, kind, content in rows:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "../../outside" if kind in LINKS else ""
            info.size = len(content) if kind == tarfile.REGTYPE else 0
            opened.addfile(info, io.BytesIO(content))
    return memory.getvalue()


def _unpack(contents: bytes) -> dict[str, bytes] | None:
    """Return what came out, None if it was refused; nothing may lie outside of the folder then either."""
    with tempfile.TemporaryDirectory() as desk:
        archive, folder = Path(desk, "x.tar.zst"), Path(desk, "out")
        folder.mkdir()
        with ZstdFile(archive, "wb") as stream:
            stream.write(contents)
        try:
            written = unpack(archive, folder, pick=lambda name: name, limit_bytes=LIMIT)
        except ArtifactError:
            written = None
        assert {path.name for path in Path(desk).iterdir()} == {"x.tar.zst", "out"}
        found = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file() and not path.is_symlink()
        }
        assert not [path for path in folder.rglob("*") if path.is_symlink()]
        assert sum(map(len, found.values())) <= LIMIT
        assert written in (None, sum(map(len, found.values())))
        return None if written is None else found


def _expected(rows: list[tuple[str, bytes, bytes]]) -> dict[str, bytes] | None:
    """Return what should come out; written for reading, and apart from the code it is held against."""
    result: dict[str, bytes] = {}
    folders: set[str] = set()
    for name, kind, content in rows:
        name = name.rstrip("/")  # as tarfile reads it
        parts = [part for part in name.split("/") if part not in ("", ".")]
        unsafe = not parts or name.startswith("/") or ".." in parts or ":" in name
        if kind in LINKS or unsafe or "\\" in name or "\n" in name:
            return None
        if kind == tarfile.DIRTYPE:
            continue
        path = "/".join(parts)
        if path in result:
            return None
        result[path] = content
        folders |= {str(parent) for parent in PurePosixPath(path).parents[:-1]}
    spelled = {*result, *folders}
    same = {unicodedata.normalize("NFC", name).casefold() for name in spelled}
    too_large = sum(map(len, result.values())) > LIMIT
    return None if len(same) < len(spelled) or folders & set(result) or too_large else result


@GENERATED
@given(rows=members, form=st.sampled_from((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)))
def test_only_safe_archives_are_unpacked_and_those_whole(
    rows: list[tuple[str, bytes, bytes]], form: int
) -> None:
    assert _unpack(_tar(rows, form)) == _expected(rows)


changes = st.lists(st.tuples(st.integers(0, 6000), st.binary(min_size=1, max_size=12)), max_size=4)


@GENERATED
@given(
    changes=changes,
    length=st.integers(0, 12000),
    form=st.sampled_from((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)),
)
def test_damaged_archives_are_refused_or_read(
    changes: list[tuple[int, bytes]], length: int, form: int
) -> None:
    rows = [("folder/" + "n" * 120, tarfile.REGTYPE, b"1" * 700), ("é" * 90, tarfile.REGTYPE, b"2" * 30)]
    contents = bytearray(_tar(rows, form))
    for place, patch in changes:
        contents[place : place + len(patch)] = patch
    _unpack(bytes(contents[:length]))


@GENERATED
@given(data=st.binary(max_size=200), keep=st.integers(0, 300))
def test_what_is_no_archive_is_refused(data: bytes, keep: int) -> None:
    with tempfile.TemporaryDirectory() as desk:
        whole = Path(desk, "whole.tar.zst")
        with ZstdFile(whole, "wb") as stream:
            stream.write(_tar([("a", tarfile.REGTYPE, b"x" * 300)], tarfile.PAX_FORMAT))
        broken = Path(desk, "broken.tar.zst")
        broken.write_bytes(whole.read_bytes()[:keep] + data)
        with contextlib.suppress(ArtifactError):
            assert unpack(broken, Path(desk), pick=lambda _: None, limit_bytes=LIMIT) == 0
