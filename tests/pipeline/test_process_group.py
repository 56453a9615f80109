"""Several processes for one stage: the real distill stage, with real processes killed."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from ammd.distill.settings import DistillSettings
from ammd.errors import DistillError
from ammd.pipeline.launch import Outcome, run_in_child
from ammd.pipeline.stages import STAGES

OBJECTIVE = {"kind": "ammd", "steps": 3, "rollout_reuse_steps": 1}


def distill(prepared: Path, folder: Path, **changes: Any) -> Outcome:
    folder.mkdir()
    settings = DistillSettings.model_validate(
        {"batch_size": 8, "precision": "float32", "warm": {"steps": 2}, "objective": OBJECTIVE, **changes}
    )
    return run_in_child(
        STAGES["distill"], inputs={"prepared": str(prepared)}, settings=settings, folder=folder
    )


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_two_processes_write_one_students_files(small_prepared: Path, tmp_path: Path) -> None:
    one = distill(small_prepared, tmp_path / "one")
    two = distill(small_prepared, tmp_path / "two", processes=2)
    assert two.results == one.results
    assert two.peak_rss_bytes > 1.5 * one.peak_rss_bytes
    names = [sorted(path.name for path in (tmp_path / name).rglob("*")) for name in ("one", "two")]
    assert names[0] == names[1]


def test_an_error_of_all_processes_is_told_once_in_its_class(small_prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(
        DistillError, match="the off-policy side of a batch are `2` rows, too few for 3"
    ) as caught:
        distill(small_prepared, tmp_path / "out", processes=3, batch_size=2)
    assert "start fewer processes" in caught.value.hint


@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_killed_process_takes_the_others_along(small_prepared: Path, tmp_path: Path, rank: str) -> None:
    out = tmp_path / "out"
    killed: list[int] = []

    def kill_once_it_trains() -> None:
        curves = out / "curves.jsonl"
        while not curves.is_file() or not curves.read_text():
            time.sleep(0.05)
        workers = [one for one in psutil.Process().children() if one.status() != psutil.STATUS_ZOMBIE]
        killed.extend(worker.pid for worker in workers)
        (chosen,) = [worker for worker in workers if worker.environ().get("RANK") == rank]
        os.kill(chosen.pid, signal.SIGKILL)

    threading.Thread(target=kill_once_it_trains, daemon=True).start()
    with pytest.raises(DistillError, match=r"stage `distill` was killed \(SIGKILL\)"):
        distill(small_prepared, out, processes=2, warm={"steps": 100_000})
    assert len(killed) == 2
    assert not any(psutil.pid_exists(pid) for pid in killed)
