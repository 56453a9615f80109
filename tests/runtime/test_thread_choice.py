from __future__ import annotations

import logging
from typing import Any

import pytest

from ammd import machine
from ammd.errors import RecipeError
from ammd.pipeline.recipe import load_section
from ammd.runtime.settings import BenchSettings
from ammd.runtime.thread_choice import best_row, describe_best, thread_counts


@pytest.mark.parametrize(
    ("asked", "available", "expected"),
    [((1, 0), 2, (1, 2)), ((0, 1), 1, (1,)), ((8, 2), 4, (2, 4)), ((0,), 3, (3,))],
)
def test_thread_counts_never_exceed_what_is_there(
    asked: tuple[int, ...], available: int, expected: tuple[int, ...]
) -> None:
    assert thread_counts(asked, available=available, physical=available) == expected


@pytest.mark.parametrize(
    ("available", "physical", "expected"),
    [
        (2, 2, (1, 2)),
        (1, 4, (1,)),  # a quota of one core
        (8, 4, (1, 2, 3, 4)),  # hyper-threads
        (20, 20, (1, 2, 4, 6, 8, 12, 16, 20)),
        (64, 64, (1, 2, 4, 6, 8, 12, 16, 20, 25, 31, 38, 47, 58, 64)),
    ],
)
def test_sweep_goes_up_to_the_physical_cores(
    available: int, physical: int, expected: tuple[int, ...]
) -> None:
    assert thread_counts("sweep", available=available, physical=physical) == expected


@pytest.mark.parametrize(
    ("asked", "physical", "words"),
    [
        ((8,), 4, "8 threads are more than the 4 cores"),
        ((4,), 2, "4 threads share 2 physical cores"),
        ((2,), 2, ""),
    ],
)
def test_too_many_threads_are_warned_of(
    caplog: pytest.LogCaptureFixture, asked: tuple[int, ...], physical: int, words: str
) -> None:
    with caplog.at_level(logging.WARNING, logger="ammd.runtime"):
        thread_counts(asked, available=4, physical=physical)
    assert words in caplog.text
    assert bool(words) == bool(caplog.records)


def row(threads: int, low: float, rate: float, high: float) -> dict[str, Any]:
    name = "decode_tokens_per_s"
    return {"threads": threads, name: rate, f"{name}_low": low, f"{name}_high": high}


def test_best_count_is_the_fastest_and_says_which_are_as_good() -> None:
    rows = [row(1, 9, 10, 11), row(2, 18, 19, 20.5), row(3, 20, 21, 22), {"threads": 4, "failure": {}}]
    assert best_row(rows) is rows[2]
    assert describe_best(rows) == {
        "threads": 3,
        "decode_tokens_per_s": 21,
        "decode_tokens_per_s_low": 20,
        "decode_tokens_per_s_high": 22,
        "not_told_apart": [2],
    }
    assert describe_best(rows[3:]) is None


def test_sweep_is_a_setting() -> None:
    assert load_section(BenchSettings, ("threads=sweep",)).threads == "sweep"
    assert load_section(BenchSettings, ("threads=[1, 2]", "depths=[0, 512]")).depths == (0, 512)
    for bad in ("threads=[]", "threads=[-1]", "threads=all", "depths=[]"):
        with pytest.raises(RecipeError, match=bad.partition("=")[0]):
            load_section(BenchSettings, (bad,))


def test_hyper_threads_of_a_core_count_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    for cpu, siblings in enumerate(("0,2", "1,3", "0,2", "1,3")):
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{siblings}\n")
    monkeypatch.setattr(machine, "_CPUS", tmp_path)
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    assert machine.physical_cores() == 2
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: {0, 1})
    assert machine.physical_cores() == 2
    monkeypatch.setattr(machine, "_CPUS", tmp_path / "none")
    assert machine.physical_cores() == 2
