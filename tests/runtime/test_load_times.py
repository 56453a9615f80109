from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ammd.runtime import memory_split
from ammd.runtime.child import call
from ammd.runtime.load_times import measure_loads
from ammd.runtime.page_cache import drop_from_cache


def opening(**changes: Any) -> dict[str, Any]:
    return {
        "load_s": 2.0,
        "first_token_s": 3.0,
        "resident_share": 0.0,
        "major_faults": 4,
        "read_bytes": 100,
    } | changes


def measured(openings: list[dict[str, Any]], *, dropped: bool = True) -> dict:
    """Return what comes of some openings, cold and warm in turn."""
    waiting = iter(openings)
    return measure_loads(pairs=len(openings) // 2, drop=lambda: dropped, open_once=lambda: next(waiting))


def test_pairs_give_medians_of_cold_and_of_warm_and_the_weakest_proof() -> None:
    warm = [opening(load_s=seconds, resident_share=share) for seconds, share in ((0.5, 1.0), (0.7, 0.9))]
    cold = [opening(load_s=seconds, resident_share=share) for seconds, share in ((3.0, 0.0), (5.0, 0.005))]
    found = measured([cold[0], warm[0], cold[1], warm[1]])
    assert found["load_note"] is None
    assert (found["load_cold_s"], found["load_warm_s"]) == (4, 0.6)
    assert (found["load_cold_resident_share"], found["load_warm_resident_share"]) == (0.005, 0.9)
    assert found["first_token_cold_s"] == 3
    assert found["load_cold_major_faults"] == 4


@pytest.mark.parametrize(
    ("share", "dropped", "note"),
    [
        (0.02, True, "2% of the files stayed in the page cache"),
        (None, True, "this system does not tell what is in its page cache"),
        (0.0, False, "this system drops no files from its page cache"),
    ],
)
def test_what_was_not_cold_has_no_cold_time(share: float | None, dropped: bool, note: str) -> None:
    pair = [opening(resident_share=share), opening(resident_share=share)]
    found = measured(pair, dropped=dropped)
    assert found["load_note"] == note
    assert (found["load_cold_s"], found["first_token_cold_s"]) == (None, None)
    assert (found["load_cold_resident_share"], found["load_warm_s"]) == (share, 2)


def test_cold_model_is_read_from_storage_and_a_warm_one_is_not(
    wide_checkpoint: Path, make_gguf: Callable[..., Path], tmp_path: Path
) -> None:
    path = make_gguf(wide_checkpoint, tmp_path / "wide-f32.gguf")
    request = {"path": str(path), "threads": 1, "prompt_tokens": 8, "decode_tokens": 2}
    found = measure_loads(
        pairs=1, drop=lambda: drop_from_cache(path), open_once=lambda: call("load_child:measure", request)
    )
    if found["load_note"]:
        pytest.skip(f"the file system of temporary files: {found['load_note']}")
    assert found["load_cold_read_bytes"] >= path.stat().st_size > found["load_warm_read_bytes"]
    assert found["load_warm_resident_share"] == 1
    assert found["first_token_cold_s"] > found["load_cold_s"] > 0


def test_parts_of_memory_add_up() -> None:
    block = bytearray(b"x") * (32 << 20)
    split = memory_split.memory_split()
    assert set(split) == set(memory_split.MEMORY_FIELDS)
    parts = [split[f"rss_{name}_bytes"] for name in ("anon", "file", "shmem")]
    assert sum(parts) == pytest.approx(split["rss_bytes"], rel=0.02)  # Linux counts them one after the other
    assert split["peak_rss_bytes"] >= split["rss_bytes"] >= split["pss_bytes"] > len(block)
    assert split["rss_anon_bytes"] > len(block)


def test_memory_is_unknown_where_there_is_no_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone:
        def __init__(self, _: object) -> None: ...

        def read_text(self, **_: object) -> str:
            raise FileNotFoundError

    monkeypatch.setattr(memory_split, "Path", Gone)
    monkeypatch.setattr(memory_split, "status_bytes", lambda _: None)
    split = memory_split.memory_split()
    assert {name for name, value in split.items() if value is None} == set(memory_split.MEMORY_FIELDS) - {
        "peak_rss_bytes"
    }


def test_without_the_systems_counters_a_model_opens_and_they_are_not_known(tiny_gguf: Path) -> None:
    """Python on Windows has neither of the two modules."""
    request = {"path": str(tiny_gguf), "threads": 1, "prompt_tokens": 8, "decode_tokens": 2}
    code = (
        "import json, sys; sys.modules |= {'resource': None, 'fcntl': None}\n"
        "from ammd.runtime import bench_child, load_child\n"
        "request = json.loads(sys.argv[1])\n"
        "opened = load_child.measure(request)\n"
        "measured = bench_child.measure(request | {'repetitions': 1, 'warmup': 0})\n"
        "print(json.dumps([opened, measured['noise']]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(request)], capture_output=True, text=True, check=True
    )
    opened, noise = json.loads(done.stdout.splitlines()[-1])
    assert (opened["major_faults"], opened["read_bytes"], noise["involuntary_switches"]) == (None, None, None)
    assert opened["first_token_s"] > opened["load_s"] > 0
    found = measure_loads(pairs=1, drop=lambda: True, open_once=lambda: opened)
    assert found["load_cold_major_faults"] is None
