"""Curves on their way to trackers: real TensorBoard and MLflow, read back by their own readers."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ammd.distill.curve_stream import CurveStreams, TrackInputs
from ammd.distill.settings import DistillSettings, ReverseKL, WarmStart

pytest.importorskip("tensorboard", reason="the extra `track` is not installed")
HAS_MLFLOW = importlib.util.find_spec("mlflow") is not None  # many packages more, so not in the extra `test`
TRACKERS = "tensorboard,mlflow" if HAS_MLFLOW else "tensorboard"
pytestmark = pytest.mark.filterwarnings("ignore")  # of what the trackers import

SETTINGS = DistillSettings(
    batch_size=4,
    precision="float32",
    warm=WarmStart(steps=4),
    objective=ReverseKL(steps=12, rollout_reuse_steps=1),
)
SCRIPT = """
import sys
from pathlib import Path
from ammd.distill import stage
from ammd.distill.curve_stream import TrackInputs
from ammd.distill.settings import DistillSettings
from ammd.distill.snapshots import Snapshots
from ammd.distill import snapshots
prepared, settings, folder, kept, every, trackers = sys.argv[1:]
Path(folder).mkdir()
count = 0
def is_due(self):
    global count
    count += 1
    return count % int(every) == 0
Snapshots.is_due = property(is_due)
track = TrackInputs(trackers=tuple(trackers.split(",")), run="mine/0123abcd", folder=Path(kept, "track"))
inputs = stage.DistillInputs(prepared=Path(prepared), resume=Path(kept, "resume"), track=track)
stage.run(inputs, DistillSettings.model_validate_json(settings), Path(folder))
"""


def start(prepared: Path, folder: Path, kept: Path, trackers: str) -> subprocess.Popen[bytes]:
    arguments = [str(prepared), SETTINGS.model_dump_json(), str(folder), str(kept), "5", trackers]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MLFLOW_TRACKING_URI": f"file://{kept}/mlruns"}
    environment["MLFLOW_ALLOW_FILE_STORE"] = "true"
    return subprocess.Popen([sys.executable, "-c", SCRIPT, *arguments], env=environment, cwd=kept)


def read_lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "curves.jsonl").read_text().splitlines()]


def tensorboard_scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def mlflow_scalars(folder: Path, key: str) -> list[tuple[int, float]]:
    """Of MLflow's own file store: a line `time value step` each."""
    (path,) = folder.glob(f"*/*/metrics/{key}")
    rows = [line.split() for line in path.read_text().splitlines()]
    return [(int(step), float(value)) for _, value, step in rows]


def test_a_killed_training_sends_every_step_once(small_prepared: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    process = start(small_prepared, tmp_path / "killed", kept, TRACKERS)
    curves = tmp_path / "killed" / "curves.jsonl"
    while process.poll() is None:
        if curves.is_file() and len(curves.read_text().splitlines()) >= 9:
            process.kill()
            break
        time.sleep(0.005)
    assert process.wait() == -signal.SIGKILL
    assert start(small_prepared, tmp_path / "out", kept, TRACKERS).wait() == 0

    rows = read_lines(tmp_path / "out")
    assert [(row["phase"], row["step"]) for row in rows] == [
        *(("warm", step) for step in range(1, 5)),
        *(("reverse_kl", step) for step in range(1, 13)),
    ]
    drawn = tensorboard_scalars(kept / "track")
    whole = [(number, pytest.approx(row["loss"], rel=1e-6)) for number, row in enumerate(rows, 1)]
    assert drawn["loss"] == whole
    assert [step for step, _ in drawn["tv_on"]] == list(range(5, 17))  # the student's texts come second
    assert drawn["trained_tokens"][0] == (1, rows[0]["trained_tokens"])
    if HAS_MLFLOW:
        assert mlflow_scalars(kept / "mlruns", "loss") == whole


def test_a_tracker_that_fails_does_not_stop_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    curves = tmp_path / "curves.jsonl"
    curves.write_text('{"phase": "warm", "step": 1, "loss": 0.5}\n')
    (tmp_path / "track").write_text("a file where a folder should be")
    inputs = TrackInputs(trackers=("tensorboard",), run="a/1", folder=tmp_path / "track")
    streams = CurveStreams(inputs, curves, SETTINGS)
    streams.send()
    streams.finish()
    assert caplog.text.count("`tensorboard` gets no more curves: FileExistsError") == 1
