"""Pruning in stages: what is cut when, by which influence, and that a killed training still ends the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from ammd.artifact import hash_file
from ammd.distill import prepare, stage
from ammd.distill.checkpoint import load_model, load_tokenizer, save_checkpoint
from ammd.distill.depth import block_influence, cut_layers
from ammd.distill.loop import learning_rate_share
from ammd.distill.prompts import read_examples
from ammd.distill.settings import DistillSettings, PrepareSettings
from ammd.distill.snapshots import Snapshots, State
from ammd.distill.staged import (
    CUTS_NAME,
    Cuts,
    StagedCuts,
    layer_counts,
    read_cuts,
    share_steps,
    spread_cuts,
    write_cuts,
)
from ammd.distill.student import measured_batch
from ammd.distill.student_settings import WidthStudent
from ammd.errors import DistillError

STAGED = {"kind": "depth", "layers": 3, "stages": 3}  # of six: five, four, three
LR = 0.02
STEPS = 7  # of the warm start: two, two and three


def prepare_student(checkpoint: Path, folder: Path, student: dict[str, Any]) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    texts, heldout = folder / "texts.jsonl", folder / "texts_heldout.jsonl"
    texts.write_text("\n".join(json.dumps({"prompt": f"the {i} in a"}) for i in range(15)))
    heldout.write_text(json.dumps({"prompt": "an"}))
    settings = PrepareSettings.model_validate(
        {
            "teacher": str(checkpoint),
            "student": student,
            "prompts": str(texts),
            "heldout": str(heldout),
            "response_tokens": 8,
        }
    )
    return prepare.run(prepare.PrepareInputs(), settings, folder)


@pytest.fixture(scope="module")
def six_layers(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint's network with six layers."""
    tiny = load_model(tiny_checkpoint, dtype=torch.float32)
    tiny.config.num_hidden_layers = 6
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = type(tiny)(tiny.config)
    model.generation_config = tiny.generation_config
    folder = tmp_path_factory.mktemp("six")
    save_checkpoint(model, load_tokenizer(tiny_checkpoint), folder)
    return folder


@pytest.fixture(scope="module")
def prepared(six_layers: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    prepare_student(six_layers, folder, STAGED)
    return folder


@pytest.fixture(scope="module")
def whole(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that nobody stopped, with its results beside."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    facts = train(prepared, folder)
    (folder / "facts.json").write_text(json.dumps(facts))
    return folder


def train(prepared: Path, folder: Path, resume: Path | None = None) -> dict[str, Any]:
    settings = DistillSettings.model_validate(
        {
            "batch_size": 4,
            "precision": "float32",
            "warm": {"steps": STEPS, "lr": LR},
            "objective": {"kind": "ammd", "steps": 2, "rollout_reuse_steps": 2},
            "seed": 5,
        }
    )
    folder.mkdir()
    return stage.run(stage.DistillInputs(prepared=prepared, resume=resume), settings, folder)


def test_prepare_makes_the_first_cut_and_leaves_word_of_the_others(six_layers: Path, tmp_path: Path) -> None:
    results = prepare_student(six_layers, tmp_path, STAGED)
    assert load_model(tmp_path / "student", dtype=torch.float32).config.num_hidden_layers == 5
    facts = results["student"]
    assert facts["layers_to_come"] == [4, 3]
    assert read_cuts(tmp_path) == Cuts(kept_layers=tuple(facts["kept_layers"]), to_come=(4, 3))
    least = min(range(1, 5), key=lambda index: facts["block_influence"][index])
    assert facts["kept_layers"] == [index for index in range(6) if index != least]


def test_one_stage_leaves_no_word_and_is_one_phase(
    measured: Any, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    results = prepare_student(tiny_checkpoint, tmp_path / "one", {"kind": "depth", "layers": 3})
    assert "layers_to_come" not in results["student"]
    assert not (tmp_path / "one" / CUTS_NAME).exists()
    facts = train(tmp_path / "one", tmp_path / "out")
    assert [row["phase"] for row in measured(tmp_path / "out")] == ["warm"] * STEPS + ["ammd"] * 2
    assert facts["layers"] == 3
    assert "kept_layers" not in facts  # prepare has told


def test_a_narrow_student_loses_its_layers_in_stages_too(six_layers: Path, tmp_path: Path) -> None:
    prepare_student(six_layers, tmp_path / "prepared", {**STAGED, "kind": "width", "intermediate_size": 64})
    facts = train(tmp_path / "prepared", tmp_path / "out")
    config = load_model(tmp_path / "out/student", dtype=torch.float32).config
    assert (config.num_hidden_layers, config.intermediate_size) == (3, 64)
    assert facts["layers"] == len(facts["kept_layers"]) == 3


def test_each_share_is_a_phase_with_a_schedule_of_its_own(measured: Any, whole: Path) -> None:
    rows = measured(whole)
    assert [(row["phase"], row["step"]) for row in rows] == [
        *(("warm 1", step) for step in (1, 2)),
        *(("warm 2", step) for step in (1, 2)),
        *(("warm 3", step) for step in (1, 2, 3)),
        *(("ammd", step) for step in (1, 2)),
    ]
    shares = [learning_rate_share(done, steps) for steps in (2, 2, 3) for done in range(steps)]
    assert [row["lr"] / LR for row in rows[:STEPS]] == pytest.approx(shares)
    for name, layers in (("warm", 3), ("student", 3)):
        assert load_model(whole / name, dtype=torch.float32).config.num_hidden_layers == layers


def test_later_cuts_are_by_the_influence_that_layers_have_by_then(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand, on the weights that snapshots hold at the end of the first and of the second share."""
    real, ends = Snapshots.save, []

    def save(self: Snapshots, state: State, *, keep: Mapping[str, Path]) -> None:
        real(self, state, keep=keep)
        phase = state.part("phase")
        if state.facts["phases"] < 3 and phase.facts["steps"] == 2:
            weights = phase.part("loop").part("student").tensors
            ends.append({name.removeprefix("model."): tensor.clone() for name, tensor in weights.items()})

    monkeypatch.setattr(Snapshots, "is_due", True)
    monkeypatch.setattr(Snapshots, "save", save)
    facts = train(prepared, tmp_path / "out", tmp_path / "resume")

    examples = read_examples(prepared / "train.jsonl")
    batch = measured_batch([(example.prompt_ids, example.response_ids) for example in examples])
    untrained = block_influence(load_model(prepared / "student", dtype=torch.float32), batch)
    student = load_model(prepared / "student", dtype=torch.float32)
    cuts = read_cuts(prepared)
    assert cuts is not None
    kept = list(cuts.kept_layers)
    by_then = []
    for weights in ends:
        for name, parameter in student.named_parameters():
            parameter.data.copy_(weights[name])
        influence = block_influence(student, batch)
        least = min(range(1, len(kept) - 1), key=lambda index: influence[index])
        by_then.append(influence)
        cut_layers(student, [index for index in range(len(kept)) if index != least])
        del kept[least]
    assert facts["kept_layers"] == kept
    assert facts["layers"] == 3
    # The untrained student would have lost other layers: two of the three inner ones, by its own influence.
    inner = sorted(range(1, 4), key=lambda index: untrained[index])
    assert kept[1] != cuts.kept_layers[inner[2]]


@pytest.mark.parametrize("every_step", [True, False])
def test_stopped_and_resumed_equals_uninterrupted(
    stop_at: Any,
    measured: Any,
    prepared: Path,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    every_step: bool,
) -> None:
    """Stopped in each share and in the second phase; snapshots after each step, or at the start of phases only."""
    if every_step:
        monkeypatch.setattr(Snapshots, "is_due", True)
    stops = [("warm 1", 2), ("warm 2", 1), ("warm 2", 2), ("warm 3", 2), ("ammd", 1)]
    for attempt, (phase, step) in enumerate(stops):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            stop_at(patch, phase, step)
            train(prepared, tmp_path / f"stopped{attempt}", tmp_path / "resume")
    facts = train(prepared, tmp_path / "resumed", tmp_path / "resume")
    for name in ("warm", "student"):
        weights = f"{name}/model.safetensors"
        assert hash_file(tmp_path / "resumed" / weights) == hash_file(whole / weights)
    assert measured(tmp_path / "resumed") == measured(whole)
    assert facts == json.loads((whole / "facts.json").read_text())


def test_a_training_killed_before_the_cut_makes_the_same_cut(
    measured: Any, prepared: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last snapshot is of a whole share; the cut is made anew from its weights."""
    monkeypatch.setattr(Snapshots, "is_due", True)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(StagedCuts, "_cut", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        train(prepared, tmp_path / "stopped", tmp_path / "resume")
    kept = Snapshots(tmp_path / "resume").load()
    assert kept is not None
    assert (kept.facts["phases"], kept.part("phase").facts["steps"]) == (1, 2)
    facts = train(prepared, tmp_path / "resumed", tmp_path / "resume")
    assert measured(tmp_path / "resumed") == measured(whole)
    assert facts == json.loads((whole / "facts.json").read_text())


def test_cuts_are_even_and_end_where_they_should() -> None:
    assert layer_counts(30, 20, 3) == [27, 24, 20]
    assert layer_counts(30, 20, 1) == [20]
    assert layer_counts(30, 30, 1) == [30]
    assert layer_counts(6, 3, 3) == [5, 4, 3]
    assert spread_cuts(4, 2, 3) == [
        4,
        3,
        2,
    ]  # an encoder's, beside a decoder that loses a layer in each stage


@pytest.mark.parametrize(("steps", "shares"), [(7, 3), (200, 1), (52, 2), (3, 3), (100, 7)])
def test_shares_add_up_to_the_steps_and_differ_by_one_at_most(steps: int, shares: int) -> None:
    found = share_steps(steps, shares)
    assert (len(found), sum(found)) == (shares, steps)
    assert max(found) - min(found) <= 1


def test_more_stages_than_layers_to_drop_are_refused_before_the_teacher_writes(
    six_layers: Path, tmp_path: Path
) -> None:
    with pytest.raises(DistillError, match="`4` stages cannot drop 3 layers") as caught:
        prepare_student(six_layers, tmp_path, {**STAGED, "stages": 4})
    assert caught.value.hint == "set `prepare.student.stages` to at most 3"
    assert not (tmp_path / "train.jsonl").exists()


def test_fewer_steps_than_shares_are_refused() -> None:
    with pytest.raises(
        DistillError, match=r"`distill\.warm\.steps` = `2` cannot be divided over the 3 stages"
    ):
        share_steps(2, 3)


def test_stages_without_layers_are_refused() -> None:
    with pytest.raises(ValidationError, match="stages drop layers, and need layers"):
        WidthStudent(intermediate_size=64, stages=2)


def test_cuts_come_back_as_written_and_a_damaged_file_is_refused(tmp_path: Path) -> None:
    assert read_cuts(tmp_path) is None
    cuts = Cuts(kept_layers=(0, 2, 5), to_come=(2,))
    for one in (cuts, Cuts(kept_layers=(0, 1), to_come=(2,), encoder=cuts)):
        write_cuts(tmp_path, one)
        assert read_cuts(tmp_path) == one
    (tmp_path / CUTS_NAME).write_text('{"kept_layers": [0]}')
    with pytest.raises(DistillError, match="does not say how the student is to be cut"):
        read_cuts(tmp_path)
