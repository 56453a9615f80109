"""What is in the page cache, against util-linux's fincore."""

from __future__ import annotations

import mmap
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from ammd.runtime.page_cache import drop_from_cache, model_files, resident_share

PAGES = 1024


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of a size that is no whole number of pages, dropped from the cache."""
    path = tmp_path / "file"
    path.write_bytes(os.urandom((PAGES - 1) * mmap.PAGESIZE + 5))
    assert resident_share(path) == 1  # it was just written
    assert drop_from_cache(path)
    if resident_share(path):
        pytest.skip("the file system of temporary files keeps them in memory")
    return path


def told_by_fincore(path: Path) -> int:
    if not shutil.which("fincore"):
        pytest.skip("no fincore here")
    done = subprocess.run(
        ["fincore", "--raw", "--noheadings", "--bytes", "--output", "PAGES", path],
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


def test_share_is_what_fincore_tells(file: Path) -> None:
    assert told_by_fincore(file) == 0
    with file.open("rb") as stream:
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # no more than is asked for
        os.pread(stream.fileno(), 100 * mmap.PAGESIZE, 10 * mmap.PAGESIZE)
    pages = told_by_fincore(file)
    assert 100 <= pages < PAGES
    assert resident_share(file) == pages / PAGES
    file.read_bytes()
    assert resident_share(file) == 1


def test_folder_counts_all_its_files_by_their_pages(file: Path) -> None:
    folder = file.parent
    (folder / "inner").mkdir()
    (folder / "inner" / "other").write_bytes(bytes(mmap.PAGESIZE * PAGES))
    (folder / "inner" / "empty").touch()
    assert len(model_files(folder)) == 3
    assert resident_share(folder) == 0.5
    assert drop_from_cache(folder)
    assert resident_share(folder) == 0


def test_asking_brings_nothing_into_the_cache(file: Path) -> None:
    assert [resident_share(file) for _ in range(3)] == [0, 0, 0]


def test_mapped_pages_stay_and_are_told(file: Path) -> None:
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as pages:
        assert len(pages[: 512 * mmap.PAGESIZE]) == 512 * mmap.PAGESIZE
        assert drop_from_cache(file)
        assert (resident_share(file) or 0) >= 0.5
