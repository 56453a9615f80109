from __future__ import annotations

import ctypes
import mmap
import sys
from pathlib import Path

import pytest

from ammd.export import mapped_files
from ammd.export.mapped_files import released_mappings

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's table of mappings")
_BYTES = 64 << 20


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(bytes(range(256)) * (_BYTES // 256))
    return path


def _resident_bytes(path: Path) -> int:
    """Of the mappings of `path`, as the system counts them."""
    found, total = False, 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            found = line.endswith(str(path))
        elif found and line.startswith("Rss:"):
            total += int(line.split()[1]) * 1024
    return total


def _release_once() -> None:
    """Do what the thread does, once and at once."""

    class Once:
        rounds = iter([False, True])

        def wait(self, _: float) -> bool:
            return next(self.rounds)

    mapped_files._release_until(Once())  # type: ignore[arg-type]


@pytest.mark.parametrize("access", [mmap.ACCESS_READ, mmap.ACCESS_COPY])
def test_pages_of_a_model_go_and_come_back_the_same(model_file: Path, access: int) -> None:
    with model_file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=access) as mapped:
        assert mapped[::4096].count(0) == _BYTES // 4096  # touches every page
        assert _resident_bytes(model_file) == _BYTES
        _release_once()
        assert _resident_bytes(model_file) < _BYTES // 4
        assert mapped[255] == 255
        assert mapped[_BYTES - 1] == 255


def test_what_was_written_to_a_private_copy_stays(model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with model_file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        mapped[4096 * 7] = 77
        monkeypatch.setattr(mapped_files, "_GROWTH_BYTES", 0)
        _release_once()
        assert mapped[4096 * 7] == 77


def test_memory_that_has_come_to_the_place_of_an_unmapped_file_keeps_its_content(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as heap:
        heap[:] = b"x" * len(heap)
        start = ctypes.addressof(ctypes.c_char.from_buffer(heap))
        table = tmp_path / "maps"  # read before the file was unmapped
        table.write_text(f"{start:x}-{start + len(heap):x} r--s 00000000 fe:00 1 /gone/model.safetensors\n")
        monkeypatch.setattr(mapped_files, "_MAPS", table)
        monkeypatch.setattr(mapped_files, "_GROWTH_BYTES", 0)
        _release_once()
        assert heap[:] == b"x" * len(heap)


def test_pages_are_not_let_go_of_before_many_have_come(
    model_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped_files, "_GROWTH_BYTES", 1 << 40)
    with model_file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert mapped[::4096].count(0) == _BYTES // 4096
        _release_once()
        assert _resident_bytes(model_file) == _BYTES


def test_other_files_are_left_alone(model_file: Path, tmp_path: Path) -> None:
    other = model_file.rename(tmp_path / "vocabulary.bin")
    with other.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert mapped[::4096].count(0) == _BYTES // 4096
        _release_once()
        assert _resident_bytes(other) == _BYTES


def test_the_thread_ends_with_the_block() -> None:
    import threading

    before = threading.active_count()
    with released_mappings():
        assert threading.active_count() == before + 1
    assert threading.active_count() == before
