"""A training that was stopped goes on to the same bytes; what it goes on from is checked."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from ammd.artifact import hash_file
from ammd.distill import prepare, stage
from ammd.distill.checkpoint import load_model
from ammd.distill.collapse import CollapseWatch
from ammd.distill.settings import DistillSettings, PrepareSettings
from ammd.distill.snapshots import Snapshots, State
from ammd.distill.step_log import StepLog
from ammd.distill.student_settings import DepthStudent
from ammd.errors import CollapseError

WEIGHTS = "student/model.safetensors"
OBJECTIVES = {
    "ammd": {"kind": "ammd", "discount": 0.5, "rollout_reuse_steps": 2, "kd_weight": 0.1},
    "sampled": {"kind": "ammd", "estimator": "sampled", "rollout_reuse_steps": 3},
    "critic": {"kind": "ammd", "critic": {"kind": "mlp", "start": "log_ratio", "ascent_tokens": 7}},
    "distillm": {
        "kind": "distillm",
        "check_steps": 1,
        "validation_texts": 3,
        "tolerance": 0,
        "share_step": 1,
        "replay_texts": 6,
    },
    "minillm": {"kind": "minillm", "rollout_reuse_steps": 2},  # a batch waits when the snapshot is taken
}


@pytest.fixture(scope="module")
def prepared(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    texts = folder / "texts.jsonl"
    texts.write_text("\n".join(json.dumps({"prompt": f"the {i} in a"}) for i in range(15)))
    heldout = folder / "heldout.jsonl"
    heldout.write_text(json.dumps({"prompt": "an"}))
    settings = PrepareSettings(
        teacher=str(tiny_checkpoint),
        student=DepthStudent(layers=3),
        prompts=str(texts),
        heldout=str(heldout),
        response_tokens=8,
    )
    prepare.run(prepare.PrepareInputs(), settings, folder)
    return folder


def settings_of(objective: dict[str, object], *, steps: int = 6, **changes: object) -> DistillSettings:
    return DistillSettings.model_validate(
        {
            "batch_size": 4,
            "precision": "float32",
            "warm": {"steps": 4, "lr": 1e-3},
            "objective": {"steps": steps, "lr": 1e-3, **objective},
            "seed": 5,
            **changes,
        }
    )


def run(prepared: Path, settings: DistillSettings, folder: Path, resume: Path | None) -> None:
    folder.mkdir()
    stage.run(stage.DistillInputs(prepared=prepared, resume=resume), settings, folder)


@pytest.mark.parametrize(
    ("name", "changes"),
    [*((name, {}) for name in OBJECTIVES), ("ammd", {"quantize_as": "gguf-q4_0"})],
    ids=[*OBJECTIVES, "quantized"],
)
def test_stopped_and_resumed_equals_uninterrupted(
    stop_at: Any,
    measured: Any,
    prepared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    changes: dict[str, object],
) -> None:
    settings = settings_of(OBJECTIVES[name], **changes)
    run(prepared, settings, tmp_path / "whole", None)
    monkeypatch.setattr(Snapshots, "is_due", True)
    for attempt, (phase, step) in enumerate([("warm", 3), ("warm", 4), (OBJECTIVES[name]["kind"], 4)]):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            stop_at(patch, str(phase), step)
            run(prepared, settings, tmp_path / f"stopped{attempt}", tmp_path / "resume")
    run(prepared, settings, tmp_path / "resumed", tmp_path / "resume")
    for file in (WEIGHTS, "warm/model.safetensors"):
        assert hash_file(tmp_path / "resumed" / file) == hash_file(tmp_path / "whole" / file)
    assert measured(tmp_path / "resumed") == measured(tmp_path / "whole")


def test_between_the_phases_a_snapshot_is_taken_whenever_the_last_was(
    stop_at: Any, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, "ammd", 1)
        run(prepared, settings_of(OBJECTIVES["ammd"]), tmp_path / "stopped", tmp_path / "resume")
    kept = Snapshots(tmp_path / "resume").load()
    assert kept is not None
    assert (kept.facts["phases"], kept.part("phase").facts["steps"]) == (2, 0)


def test_an_altered_snapshot_is_noticed_and_training_begins_anew(
    stop_at: Any,
    prepared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings = settings_of(OBJECTIVES["ammd"])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, "ammd", 2)
        run(prepared, settings, tmp_path / "stopped", tmp_path / "resume")
    tensors = tmp_path / "resume/state/tensors.safetensors"
    content = bytearray(tensors.read_bytes())
    content[-5] ^= 1
    tensors.write_bytes(content)
    with caplog.at_level(logging.WARNING, logger="ammd.distill"):
        run(prepared, settings, tmp_path / "anew", tmp_path / "resume")
    assert "training begins anew" in caplog.text
    run(prepared, settings, tmp_path / "whole", None)
    assert hash_file(tmp_path / "anew" / WEIGHTS) == hash_file(tmp_path / "whole" / WEIGHTS)


def test_a_collapse_leaves_the_last_good_student(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check(_self: CollapseWatch, entry: StepLog) -> None:
        if entry.phase == "ammd" and entry.step == 3:
            raise CollapseError("it repeats itself", hint="set `kd_weight`")

    monkeypatch.setattr(CollapseWatch, "check", check)
    monkeypatch.setattr(Snapshots, "is_due", True)
    with pytest.raises(CollapseError, match="it repeats itself") as caught:
        run(prepared, settings_of(OBJECTIVES["ammd"]), tmp_path / "out", tmp_path / "resume")
    kept = tmp_path / "resume" / stage.LAST_GOOD_NAME
    assert caught.value.hint == f"set `kd_weight`; the student of the last snapshot is in `{kept}`"
    model = load_model(kept, dtype=torch.float32)
    state = Snapshots(tmp_path / "resume").load()
    assert state is not None
    assert state.part("phase").facts["steps"] == 2
    student = state.part("phase").part("loop").part("student").tensors
    weight = student["model.model.norm.weight"].bfloat16().float()
    torch.testing.assert_close(model.base_model.norm.weight.detach(), weight, rtol=0, atol=0)


SCRIPT = """
import sys
from pathlib import Path
from ammd.distill import stage
from ammd.distill.settings import DistillSettings
from ammd.distill.snapshots import Snapshots
Snapshots.is_due = True
prepared, settings, folder, resume = sys.argv[1:]
Path(folder).mkdir()
inputs = stage.DistillInputs(prepared=Path(prepared), resume=Path(resume) if resume else None)
stage.run(inputs, DistillSettings.model_validate_json(settings), Path(folder))
"""


def test_a_killed_process_goes_on_to_the_same_weights(prepared: Path, tmp_path: Path) -> None:
    settings = settings_of(OBJECTIVES["ammd"], steps=12)

    def start(name: str, resume: str) -> subprocess.Popen[bytes]:
        arguments = [str(prepared), settings.model_dump_json(), str(tmp_path / name), resume]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen([sys.executable, "-c", SCRIPT, *arguments], env=environment)

    assert start("whole", "").wait() == 0
    resume = tmp_path / "resume"
    process = start("killed", str(resume))
    curves = tmp_path / "killed" / "curves.jsonl"
    while process.poll() is None:
        if curves.is_file() and len(curves.read_text().splitlines()) >= 8:
            process.kill()
            break
        time.sleep(0.005)
    assert process.wait() == -signal.SIGKILL
    assert start("resumed", str(resume)).wait() == 0
    assert hash_file(tmp_path / "resumed" / WEIGHTS) == hash_file(tmp_path / "whole" / WEIGHTS)


def test_parts_of_a_state_come_back_under_their_names() -> None:
    whole = State(facts={"n": 1})
    inner = State(tensors={"w": torch.ones(2)}, facts={"deep": [1, None]})
    inner.put("deeper", State(tensors={"v.x": torch.zeros(1)}))
    whole.put("inner", inner)
    found = whole.part("inner")
    assert found.facts["deep"] == [1, None]
    assert set(found.tensors) == {"w", "deeper.v.x"}
    assert set(found.part("deeper").tensors) == {"v.x"}
