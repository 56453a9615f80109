from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from ammd.durable import disk_full, flush_folder, is_disk_full, write_fault, write_text, writing_to
from ammd.errors import ArtifactError


def full_disk() -> OSError:
    """The system's own error, from a device that is always full."""
    with pytest.raises(OSError, match="No space") as caught:
        Path("/dev/full").write_text("x", encoding="utf-8")
    return caught.value


def test_full_disk_is_known_in_every_form() -> None:
    assert is_disk_full(full_disk())
    assert is_disk_full(OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)))
    assert is_disk_full(RuntimeError("I/O error: No space left on device (os error 28)"))
    with pytest.raises(ValueError, match="cannot save") as caught:
        try:
            raise full_disk()
        except OSError as exc:
            raise ValueError("cannot save") from exc
    assert is_disk_full(caught.value)
    assert not is_disk_full(OSError(errno.EACCES, os.strerror(errno.EACCES)))
    assert not is_disk_full(None)


def test_error_names_the_folder_with_the_least_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = {tmp_path / "a": 7, tmp_path / "b": 3}
    monkeypatch.setattr("ammd.durable._free_bytes", lambda folder: room.get(folder, 100))
    error = disk_full(*room, doing="it was tried")
    assert str(error) == f"no space left on the disk of `{tmp_path / 'b'}` while it was tried"
    assert error.facts["found"] == 3


def test_other_refusals_keep_the_systems_words(tmp_path: Path) -> None:
    with (
        pytest.raises(ArtifactError, match=r"cannot write to `.*`: Permission denied"),
        writing_to(tmp_path),
    ):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    assert "no space left" in str(write_fault(full_disk(), tmp_path))


def test_text_has_the_users_permissions(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write_text(tmp_path / "x", "a")
    finally:
        os.umask(old)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640


def test_folder_that_cannot_be_flushed_is_none_the_worse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some network file systems refuse to flush folders."""

    def refuse(_descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    number = errno.EINVAL
    flush_folder(tmp_path)
    number = errno.EIO
    with pytest.raises(OSError, match="Input/output"):
        flush_folder(tmp_path)
