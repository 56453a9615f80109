"""The loop and the two stages on a tiny random teacher."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ammd.artifact import hash_file
from ammd.distill import device, prepare, stage, supply
from ammd.distill.batches import build_batch, endless_order
from ammd.distill.checkpoint import load_model, load_tokenizer, save_checkpoint
from ammd.distill.fleet import Fleet
from ammd.distill.loop import learning_rate_share
from ammd.distill.objective import Weights
from ammd.distill.phase import Phase
from ammd.distill.policy import Policy
from ammd.distill.prompts import read_examples
from ammd.distill.settings import (
    Ammd,
    DepthStudent,
    DistillSettings,
    ModelStudent,
    PrepareSettings,
    ReverseKL,
    WarmStart,
)
from ammd.distill.sides import Side
from ammd.distill.step_log import count_tokens
from ammd.distill.supply import BothSides, TeacherTexts
from ammd.distill.teacher_states import TeacherStates, TeacherStatesWriter
from ammd.distill.trainer import run_phase
from ammd.errors import DataError, DistillError, NonFiniteLossError

PAIRS = [((1, 20 + i, 30), (40 + i, 50, 2)) for i in range(8)]
SETTINGS = DistillSettings(batch_size=4, precision="float32", chunk_tokens=5)


def load(folder: Path) -> Policy:
    return Policy(load_model(folder, dtype=torch.float32))


def train(
    student: Policy, teacher: Policy, tmp_path: Path, *, off: Weights, lr: float = 1e-3, steps: int = 10
):
    curves = tmp_path / "curves.jsonl"
    order = endless_order([6] * len(PAIRS), batch_size=4, seed=0)
    phase = Phase(name="test", steps=steps, lr=lr, off=Side(weights=off, rows=4), on=None)
    with (
        torch.inference_mode(),
        TeacherStatesWriter(
            tmp_path, examples=len(PAIRS), width=teacher.head.shape[1], dtype=torch.float32
        ) as writer,
    ):
        for index, pair in enumerate(PAIRS):
            writer.append(index, teacher(build_batch([pair])))
    texts = TeacherTexts(PAIRS, TeacherStates(tmp_path), order, dtype=torch.float32)
    run_phase(
        phase,
        student=student,
        teacher=teacher,
        supply=BothSides(teacher_texts=texts, student_texts=None),
        longest_tokens=6,
        settings=SETTINGS,
        curves=curves,
        fleet=Fleet(),
    )
    return [json.loads(line) for line in curves.read_text().splitlines()]


def other_student(tiny_checkpoint: Path) -> Policy:
    student = load(tiny_checkpoint)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        for parameter in student.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return student


@pytest.mark.parametrize("off", [Weights(kl=1.0), Weights(game=1.0)])
def test_training_closes_the_gap(tiny_checkpoint: Path, tmp_path: Path, off: Weights) -> None:
    rows = train(other_student(tiny_checkpoint), load(tiny_checkpoint), tmp_path, off=off, steps=30)
    assert rows[-1]["d_off"] < 0.3 * rows[0]["d_off"]
    assert rows[-1]["kl_nats"] < 0.3 * rows[0]["kl_nats"]


def test_training_that_starts_at_the_teacher_stays_there(tiny_checkpoint: Path, tmp_path: Path) -> None:
    rows = train(load(tiny_checkpoint), load(tiny_checkpoint), tmp_path, off=Weights(game=1.0), lr=1e-5)
    assert max(row["d_off"] for row in rows) < 1e-4
    assert max(row["kl_nats"] for row in rows) < 1e-4


def test_a_loss_that_is_not_a_number_stops_the_run(tiny_checkpoint: Path, tmp_path: Path) -> None:
    student = load(tiny_checkpoint)
    with torch.no_grad():
        student.model.base_model.norm.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteLossError, match="at step 1 of phase `test`"):
        train(student, load(tiny_checkpoint), tmp_path, off=Weights(kl=1.0))


def test_a_validation_set_of_all_texts_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    source = prepared(tiny_checkpoint, tmp_path)
    settings = DistillSettings.model_validate({"objective": {"kind": "distillm"}, "precision": "float32"})
    with pytest.raises(DistillError, match="keeps back all of the 11 training texts"):
        stage.run(stage.DistillInputs(prepared=source), settings, tmp_path)


def test_distillm_takes_one_kind_of_texts_a_step(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """With a tolerance of nothing and a learning rate that hurts, the loss rises and the student's texts come in."""
    source = prepared(tiny_checkpoint, tmp_path)
    objective = {
        "kind": "distillm",
        "steps": 16,
        "lr": 0.05,
        "check_steps": 1,
        "validation_texts": 3,
        "tolerance": 0,
        "share_step": 0.5,
        "replay_texts": 8,
    }
    settings = DistillSettings.model_validate(
        {"batch_size": 4, "precision": "float32", "warm": {"steps": 1, "lr": 1e-6}, "objective": objective}
    )
    (tmp_path / "out").mkdir()
    stage.run(stage.DistillInputs(prepared=source), settings, tmp_path / "out")
    rows = [json.loads(line) for line in (tmp_path / "out/curves.jsonl").read_text().splitlines()[1:]]
    assert {("d_off" in row, "d_on" in row) for row in rows} == {(True, False), (False, True)}


def test_a_model_whose_logits_are_not_the_plain_product_is_refused(tiny_checkpoint: Path) -> None:
    model = load_model(tiny_checkpoint, dtype=torch.float32)
    model.lm_head.register_forward_hook(lambda _module, _inputs, output: 30 * torch.tanh(output / 0.1))
    with pytest.raises(DistillError, match="scaled, capped or biased"):
        Policy(model)


def test_learning_rate_rises_then_falls_to_a_tenth() -> None:
    shares = [learning_rate_share(done, 100) for done in range(100)]
    assert shares[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert shares[5] == pytest.approx(1.0)
    assert shares == sorted(shares[:5]) + sorted(shares[5:], reverse=True)
    assert learning_rate_share(100, 100) == pytest.approx(0.1)


def prepared(tiny_checkpoint: Path, tmp_path: Path, **changes: object) -> Path:
    train_file, heldout = tmp_path / "train.jsonl", tmp_path / "heldout.jsonl"
    rows = [{"prompt": f"the {i} in a"} for i in range(10)] + [{"prompt": "then", "response": "the an in"}]
    train_file.write_text("\n".join(map(json.dumps, rows)))
    heldout.write_text(json.dumps({"prompt": "an", "response": "reference"}))
    settings = PrepareSettings.model_validate(
        {
            "teacher": str(tiny_checkpoint),
            "student": DepthStudent(layers=3),
            "prompts": str(train_file),
            "heldout": str(heldout),
            "response_tokens": 8,
            "seed": 5,
            **changes,
        }
    )
    folder = tmp_path / "prepare"
    folder.mkdir()
    results = prepare.run(prepare.PrepareInputs(), settings, folder)
    (tmp_path / "results.json").write_text(json.dumps(results))
    return folder


def test_prepare_writes_texts_and_a_cut_student(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = prepared(tiny_checkpoint, tmp_path)
    examples = read_examples(folder / "train.jsonl")
    assert len(examples) == 11
    assert examples[-1].response == "the an in"
    assert examples[-1].response_ids[-1] == 2
    assert all(0 < len(example.response_ids) <= 8 for example in examples)
    heldout = json.loads((folder / "heldout.jsonl").read_text())
    assert heldout["reference"] == "reference"
    written = [len(example.response_ids) for example in examples[:-1]] + [len(heldout["response_ids"])]
    assert json.loads((tmp_path / "results.json").read_text())["generated_tokens"] == sum(written)
    assert load_model(folder / "student", dtype=torch.float32).config.num_hidden_layers == 3
    again = tmp_path / "again"
    again.mkdir()
    other = prepared(tiny_checkpoint, again)
    for name in ("train.jsonl", "heldout.jsonl", "student/model.safetensors"):
        assert hash_file(other / name) == hash_file(folder / name)


def test_prepare_refuses_to_judge_by_what_it_trains_on(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "train.jsonl")
    with pytest.raises(DataError, match=r"are the same file `.*link\.jsonl`"):
        prepared(tiny_checkpoint, tmp_path, heldout=str(tmp_path / "link.jsonl"))


def test_the_teacher_can_write_over_given_responses(tiny_checkpoint: Path, tmp_path: Path) -> None:
    examples = read_examples(prepared(tiny_checkpoint, tmp_path, responses="teacher") / "train.jsonl")
    assert examples[-1].prompt == "then"
    assert examples[-1].response != "the an in"


def test_kept_states_are_those_of_a_live_teacher(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both for responses that the teacher wrote and for the one that the data gave."""
    monkeypatch.setattr(device, "has_fast_bfloat16", lambda: False)
    folder = prepared(tiny_checkpoint, tmp_path)
    pairs = [(example.prompt_ids, example.response_ids) for example in read_examples(folder / "train.jsonl")]
    kept = TeacherStates(folder).rows(range(len(pairs)), [len(response) for _, response in pairs])
    with torch.inference_mode():
        live = load(folder / "teacher")(build_batch(pairs))
    torch.testing.assert_close(kept, live, rtol=1e-3, atol=5e-4)  # token by token against all at once


def test_prepare_takes_another_model_as_student_and_fewer_prompts(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    folder = prepared(
        tiny_checkpoint, tmp_path, student=ModelStudent(source=str(tiny_checkpoint)), max_prompts=4
    )
    assert len(read_examples(folder / "train.jsonl")) == 4
    assert (folder / "student/model.safetensors").samefile(tiny_checkpoint / "model.safetensors")


def test_prepare_refuses_a_prompt_beyond_the_context(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 1 has .* tokens, the model's context leaves room for 2"):
        prepared(tiny_checkpoint, tmp_path, response_tokens=510)


def test_distill_writes_both_checkpoints_and_is_reproducible(tiny_checkpoint: Path, tmp_path: Path) -> None:
    source = prepared(tiny_checkpoint, tmp_path)
    settings = DistillSettings(
        batch_size=4,
        precision="float32",
        warm=WarmStart(steps=4, lr=1e-3),
        objective=Ammd(steps=5, lr=1e-3, discount=0.5, rollout_reuse_steps=2, kd_weight=0.1),
        seed=5,
    )
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        stage.run(stage.DistillInputs(prepared=source), settings, tmp_path / name)
    rows = [json.loads(line) for line in (tmp_path / "one/curves.jsonl").read_text().splitlines()]
    assert [row["phase"] for row in rows] == ["warm"] * 4 + ["ammd"] * 5
    assert all("d_on" in row and "future_gap" in row for row in rows[4:])
    assert all("d_on" not in row for row in rows[:4])
    hashes = {name: hash_file(tmp_path / name / "student/model.safetensors") for name in ("one", "two")}
    assert hashes["one"] == hashes["two"]
    assert hash_file(tmp_path / "one/warm/model.safetensors") != hashes["one"]
    assert load_model(tmp_path / "one/student", dtype=torch.bfloat16).dtype == torch.bfloat16


def test_tokens_are_counted_by_step_and_in_all(small_prepared: Path, tmp_path: Path, pairs: list) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    settings = DistillSettings(
        batch_size=len(pairs),  # every step is on all texts
        precision="float32",
        warm=WarmStart(steps=2),
        objective=ReverseKL(steps=3, rollout_reuse_steps=1),
    )
    results = stage.run(stage.DistillInputs(prepared=small_prepared), settings, folder)
    rows = [json.loads(line) for line in (folder / "curves.jsonl").read_text().splitlines()]
    taught = sum(len(response) for _, response in pairs)
    own = [round(row["response_tokens_on"] * len(pairs)) for row in rows[2:]]
    assert [row["trained_tokens"] for row in rows] == [taught, taught, *own]
    assert [row["generated_tokens"] for row in rows] == [0, 0, *own]
    assert results["trained_tokens"] == 2 * taught + sum(own)
    assert results["generated_tokens"] == sum(own)


def test_curves_of_an_older_version_tell_no_tokens(tmp_path: Path) -> None:
    curves = tmp_path / "curves.jsonl"
    curves.write_text('{"step": 1}\n{"step": 2, "trained_tokens": 5, "generated_tokens": 0}\n')
    assert count_tokens(curves) == {"trained_tokens": None, "generated_tokens": None}


def second_phase(
    tiny_checkpoint: Path, tmp_path: Path, objective: dict[str, object]
) -> list[dict[str, float]]:
    """Train a student far from its teacher and return the second phase's curves."""
    start = tmp_path / "start"
    save_checkpoint(other_student(tiny_checkpoint).model, load_tokenizer(tiny_checkpoint), start)
    source = prepared(tiny_checkpoint, tmp_path, student=ModelStudent(source=str(start)))
    settings = DistillSettings.model_validate(
        {
            "batch_size": 4,
            "precision": "float32",
            "warm": {"steps": 1, "lr": 1e-6},
            "objective": {"lr": 1e-3, **objective},
        }
    )
    (tmp_path / "out").mkdir()
    facts = stage.run(stage.DistillInputs(prepared=source), settings, tmp_path / "out")
    assert facts["objective"] == objective["kind"]
    return [json.loads(line) for line in (tmp_path / "out/curves.jsonl").read_text().splitlines()[1:]]


@pytest.mark.parametrize(
    "objective",
    [
        {"kind": "sft"},
        {"kind": "forward_kl", "student_share": 0.5},
        {"kind": "reverse_kl"},
        {"kind": "gjsd"},
        {"kind": "tv"},
        {"kind": "skew_kl"},
        {"kind": "skew_rkl"},
        {"kind": "le_cam"},
        {"kind": "minillm"},
    ],
    ids=lambda objective: objective["kind"],
)
def test_every_rival_runs_on_the_same_loop(
    tiny_checkpoint: Path, tmp_path: Path, objective: dict[str, object]
) -> None:
    rows = second_phase(tiny_checkpoint, tmp_path, {"steps": 12, **objective})
    assert {row["phase"] for row in rows} == {objective["kind"]}
    on_policy = objective["kind"] not in {"sft", "skew_kl"}
    assert all(("d_on" in row) == on_policy for row in rows)
    assert all(("d_off" in row) == (objective["kind"] not in {"reverse_kl", "minillm"}) for row in rows)
    measure = "tv_on" if objective["kind"] == "minillm" else "loss"  # a policy gradient's loss is no distance
    assert max(row[measure] for row in rows[-3:]) < rows[0][measure]


@pytest.mark.parametrize(
    "critic",
    [
        {"kind": "linear", "start": "zero", "lr": 0.01, "ascents": 20, "ascent_tokens": 64},
        {"kind": "lowrank", "start": "log_ratio"},
        {"kind": "mlp", "hidden": 8, "min_share": 0.0},  # of a limited class: it cannot hold more here
    ],
    ids=lambda critic: f"{critic['kind']} from {critic.get('start', 'difference')}",
)
def test_the_game_is_played_with_learned_critics(
    tiny_checkpoint: Path, tmp_path: Path, critic: dict[str, object]
) -> None:
    objective = {"kind": "ammd", "steps": 20, "critic": {"min_share": 0.3, **critic}}
    rows = second_phase(tiny_checkpoint, tmp_path, objective)
    least = critic.get("min_share", 0.3)
    assert all(row["stood_still"] == (min(shares(row)) < least) for row in rows)
    assert max(max(shares(row)) for row in rows) <= 1 + 1e-5  # no critic is better than the closed form
    assert sum(row["stood_still"] for row in rows) < 15
    assert rows[-1]["tv_off"] < 0.8 * rows[0]["tv_off"]


def shares(row: dict[str, float]) -> tuple[float, float]:
    return row["critic_share_off"], row["critic_share_on"]


def test_the_second_phase_goes_on_where_the_first_stopped(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eleven texts in batches of five: the first two batches, one a phase, share none."""
    source = prepared(tiny_checkpoint, tmp_path)
    seen: list[set[tuple[int, ...]]] = []
    build = supply.build_batch

    def record(pairs):
        seen.append({tuple(prompt) for prompt, _ in pairs})
        return build(pairs)

    monkeypatch.setattr(supply, "build_batch", record)
    one_step = {"warm": {"steps": 1}, "objective": {"steps": 1}}
    settings = DistillSettings.model_validate({"batch_size": 5, "precision": "float32", **one_step})
    (tmp_path / "out").mkdir()
    stage.run(stage.DistillInputs(prepared=source), settings, tmp_path / "out")
    assert len(seen) == 2
    assert seen[0].isdisjoint(seen[1])
