"""The processor's energy counters, in folders written as Linux has them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ammd.runtime.energy import joules_between, read_energy

Write = Callable[..., Path]


@pytest.fixture
def write_zone(tmp_path: Path) -> Write:
    def write(folder: str, name: str, microjoules: int, *, whole: int = 1_000_000) -> Path:
        zone = tmp_path / folder
        zone.mkdir(exist_ok=True)
        (zone / "name").write_text(f"{name}\n")
        (zone / "energy_uj").write_text(f"{microjoules}\n")
        (zone / "max_energy_range_uj").write_text(f"{whole}\n")
        return tmp_path

    return write


def test_packages_are_added_and_their_parts_are_not(write_zone: Write) -> None:
    write_zone("intel-rapl:0", "package-0", 100_000)
    write_zone("intel-rapl:0:0", "core", 90_000)
    zones = write_zone("intel-rapl:1", "package-1", 500)
    before = read_energy(zones)
    write_zone("intel-rapl:0", "package-0", 350_000)
    write_zone("intel-rapl:0:0", "core", 900_000)
    write_zone("intel-rapl:1", "package-1", 50_500)
    assert joules_between(before, read_energy(zones)) == pytest.approx(0.3)


def test_counter_that_began_anew_goes_on(write_zone: Write) -> None:
    before = read_energy(write_zone("intel-rapl:0", "package-0", 990_000))
    after = read_energy(write_zone("intel-rapl:0", "package-0", 5_000))
    assert joules_between(before, after) == pytest.approx(0.015)


def test_what_does_not_tell_is_not_known(write_zone: Write, tmp_path: Path) -> None:
    assert read_energy(tmp_path / "none") == {}
    assert joules_between({}, {}) is None
    zones = write_zone("intel-rapl:0", "package-0", 1)
    before = read_energy(zones)
    (zones / "intel-rapl:0" / "energy_uj").unlink()
    assert joules_between(before, read_energy(zones)) is None
