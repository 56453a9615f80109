"""Which processes are measured, which again, and which count; no process is started for it."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ammd.errors import ArtifactError, EngineError
from ammd.runtime import bench, host, rounds
from ammd.runtime.artifact_ref import ArtifactRef
from ammd.runtime.host import Here
from ammd.runtime.rounds import Cell, Course, measure_cells
from ammd.runtime.settings import BenchSettings

FIRST, SECOND = (
    Cell(artifact=ArtifactRef(name=name, path=Path(name)), engine="llama.cpp", threads=1, prompt_tokens=128)
    for name in ("a", "b")
)


def told(*, speed: float = 1.0, passes: int = 5, **noise: float) -> dict[str, Any]:
    """What a child tells of steady passes that take 1 s at speed 1."""
    seconds = [1 / speed] * passes
    return {
        "engine": "e",
        "measured_at": "2026-01-01T00:00:00Z",
        "settings": {},
        "load_s": 0.5,
        "ttft_s": seconds,
        "prefill_s": seconds,
        "token_s": [[one] for one in seconds],
        "peak_rss_bytes": 3,
        "rss_anon_bytes": 2,
        "idle_rss_bytes": 1,
        "discarded": {"ttft_s": [9.0], "prefill_s": [9.0], "token_s": [[9.0]]},
        "warmed_up_by": "agreement",
        "stopped_by": "target",
        "noise": {"seconds": 5.0, "competing_share": 0.0, "steal_share": 0.0, "throttled_share": None}
        | noise,
    }


def measured(
    scripts: Mapping[str, list[dict[str, Any] | Exception]], **settings: Any
) -> tuple[list[str], list[Course], BenchSettings]:
    """Measure cells of which each has its next answer in `scripts`; return the order, the courses, the settings."""
    order, left = [], {name: list(script) for name, script in scripts.items()}

    def measure(cell: Cell) -> Mapping[str, Any]:
        order.append(cell.artifact.name)
        answer = left[cell.artifact.name].pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    wanted = BenchSettings(**({"processes": 2, "max_processes": 2, "retries": 1} | settings))
    cells = [cell for cell in (FIRST, SECOND) if cell.artifact.name in scripts]
    return order, measure_cells(cells, wanted, measure=measure, host=Here()), wanted


def row_of(course: Course, settings: BenchSettings) -> dict[str, Any]:
    row: dict[str, Any] = json.loads(json.dumps(bench.build_row(FIRST, course, settings)))
    return row


def test_cells_take_turns_and_a_steady_one_stops_at_its_least() -> None:
    order, courses, settings = measured({"a": [told()] * 3, "b": [told()] * 3}, max_processes=3)
    assert order == ["a", "b", "a", "b"]
    assert [course.stopped_by.value for course in courses if course.stopped_by] == ["target"] * 2
    row = row_of(courses[0], settings)
    assert (row["validity"], row["validity_reasons"], row["replaced"]) == ("good", [], [])
    assert (row["processes"], row["warmup_passes"]) == (2, [1, 1])
    assert row["passes_stopped_by"] == ["target", "target"]


def test_wide_intervals_bring_more_processes_to_that_cell_alone() -> None:
    order, courses, _ = measured(
        {"a": [told(speed=speed) for speed in (1.0, 1.05, 1.03, 1.01)], "b": [told()] * 2}, max_processes=4
    )
    assert order == ["a", "b", "a", "b", "a", "a"]
    assert courses[0].stopped_by is rounds.StoppedBy.MAX_PROCESSES
    assert len(courses[0].counted) == 4


def test_disturbed_process_is_measured_again_and_both_are_told() -> None:
    order, (course,), settings = measured(
        {"a": [told(speed=0.5, competing_share=0.2), told(), told(speed=1.01)]}
    )
    assert len(order) == 3
    row = row_of(course, settings)
    assert (row["validity"], row["processes"]) == ("good", 2)
    (again,) = row["replaced"]
    assert again["validity"] == "noisy"
    assert "20.0% of all cores' time went to other processes" in again["validity_reasons"][0]
    assert again["samples"]["decode_tokens_per_s"] == [0.5] * 5
    assert again["noise"]["competing_share"] == 0.2


def test_the_choice_goes_by_what_others_did_and_never_by_speed() -> None:
    """The disturbed process happens to be the fastest, and the slow undisturbed one stays."""
    _, (course,), settings = measured(
        {"a": [told(speed=2.0, competing_share=0.2), told(speed=0.5), told()]}, retries=1
    )
    row = row_of(course, settings)
    assert [one["decode_tokens_per_s"][0] for one in row["samples"]] == [0.5, 1.0]
    assert row["validity"] == "noisy"
    assert "from the slowest process to the fastest" in row["validity_reasons"][0]


def test_what_stays_disturbed_counts_the_least_disturbed_and_is_marked() -> None:
    shares = (0.30, 0.20, 0.11, 0.40)
    order, (course,), settings = measured({"a": [told(competing_share=share) for share in shares]}, retries=2)
    assert len(order) == 4
    row = row_of(course, settings)
    assert [one["competing_share"] for one in row["noise"]] == [0.20, 0.11]
    assert [one["noise"]["competing_share"] for one in row["replaced"]] == [0.30, 0.40]
    assert row["validity"] == "noisy"


def test_more_processes_for_a_wide_interval_replace_no_more_than_the_retries() -> None:
    speeds = (1.0, 1.2, 0.9, 1.1, 1.0)
    order, (course,), _ = measured(
        {"a": [told(speed=speed, competing_share=0.2) for speed in speeds]}, max_processes=4, retries=1
    )
    assert (len(order), len(course.counted), len(course.replaced)) == (5, 4, 1)


def test_without_retries_nothing_is_measured_again() -> None:
    order, (course,), settings = measured({"a": [told(steal_share=0.5), told()]}, retries=0)
    assert len(order) == 2
    assert row_of(course, settings)["validity"] == "invalid"


def test_processes_may_have_unequally_many_passes() -> None:
    _, (course,), settings = measured({"a": [told(passes=5), told(passes=15)]})
    row = row_of(course, settings)
    assert [len(one["ttft_s"]) for one in row["samples"]] == [5, 15]
    assert row["decode_tokens_per_s_low"] == row["decode_tokens_per_s_next_high"] == 1


@pytest.mark.parametrize(("more_kills", "ending"), [(0, ""), (1, ", for want of memory")])
def test_killed_process_ends_its_cell_and_no_other(
    monkeypatch: pytest.MonkeyPatch, more_kills: int, ending: str
) -> None:
    counts = iter([3, 3, 3, 3 + more_kills, 4, 4, 4])
    monkeypatch.setattr(host, "oom_kills", lambda: next(counts))
    killed = EngineError(
        "the process for `x` was killed by SIGKILL; its last lines:\nabout to load",
        hint="close other programs",
        status=-signal.SIGKILL,
    )
    order, courses, settings = measured({"a": [told(), killed], "b": [told()] * 2}, retries=0)
    # a, then b, which asks once, then a again
    assert order == ["a", "b", "a", "b"]
    row = row_of(courses[0], settings)
    assert row["failure"] == {
        "ended": f"the process for `x` was killed by SIGKILL{ending}",
        "message": str(killed),
        "hint": "close other programs",
        "exit_status": -9,
        "signal": "SIGKILL",
        "out_of_memory": bool(more_kills),
    }
    assert (row["validity"], row["processes"], len(row["replaced"])) == ("invalid", 0, 1)
    assert row_of(courses[1], settings)["processes"] == 2


def test_kernel_that_does_not_count_leaves_want_of_memory_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "oom_kills", lambda: None)
    _, (course,), _ = measured({"a": [EngineError("gone", status=-signal.SIGKILL)]})
    assert course.failure is not None
    assert (course.failure.out_of_memory, course.failure.ended) == (None, "gone")


def test_missing_file_still_ends_everything() -> None:
    with pytest.raises(ArtifactError, match="gone"):
        measured({"a": [ArtifactError("gone")]})
