"""Encoder-decoder students in training: states, loss and gradient against transformers' logits; cuts; both stages."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from ammd.artifact import hash_file
from ammd.distill import prepare, stage
from ammd.distill.batches import build_batch
from ammd.distill.checkpoint import load_model, load_tokenizer, save_checkpoint
from ammd.distill.chunked import States, matching_loss
from ammd.distill.depth import Stack, block_influence, cut_layers, layers_of
from ammd.distill.objective import Weights
from ammd.distill.policy import Policy
from ammd.distill.prompts import read_examples
from ammd.distill.score import Score
from ammd.distill.settings import DistillSettings, PrepareSettings
from ammd.distill.teacher_states import TeacherStates
from ammd.errors import DataError, DistillError

PAIRS = [
    ((20, 30, 40, 1), (9, 10, 11, 1)),
    ((50, 1), (12, 1)),
    ((60, 61, 62, 63, 64, 1), (13, 14, 15, 16, 17, 1)),
]
KINDS = ("tiny_t5", "tiny_flan_t5")


@pytest.fixture(params=KINDS)
def folder(request: pytest.FixtureRequest) -> Path:
    """Both forms of a head in turn."""
    return request.getfixturevalue(request.param)


def load(folder: Path) -> Policy:
    return Policy(load_model(folder, dtype=torch.float32))


def own_logits(model: PreTrainedModel) -> torch.Tensor:
    """Return transformers' logits at the response tokens of all pairs, one sequence at a time. [N, V]."""
    rows = [
        model(input_ids=torch.tensor([prompt]), labels=torch.tensor([response])).logits[0]
        for prompt, response in PAIRS
    ]
    return torch.cat(rows)


def shaken(folder: Path) -> Policy:
    """Return a student some way off its teacher."""
    student = load(folder)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return student


def test_a_batch_falls_into_sources_and_shifted_responses() -> None:
    batch = build_batch(PAIRS)
    source_ids, source_mask = batch.sources
    assert [row[mask.bool()].tolist() for row, mask in zip(source_ids, source_mask, strict=True)] == [
        list(prompt) for prompt, _ in PAIRS
    ]
    inputs, predicts = batch.decoder_inputs(7)
    assert [row[mask].tolist() for row, mask in zip(inputs, predicts, strict=True)] == [
        [7, *response[:-1]] for _, response in PAIRS
    ]
    assert inputs.shape == (3, 6)
    assert source_ids.shape == (3, 6)


def test_head_times_state_is_transformers_logit(folder: Path) -> None:
    policy = load(folder)
    with torch.inference_mode():
        found = policy(build_batch(PAIRS)) @ policy.head.T
        # Another order of summation in float32, over padded rows.
        torch.testing.assert_close(found, own_logits(policy.model), rtol=1e-4, atol=1e-4)


def test_pieces_of_a_batch_have_the_states_of_the_whole(folder: Path) -> None:
    policy, batch = load(folder), build_batch(PAIRS)
    with torch.inference_mode():
        whole = policy(batch)
        for piece, place in batch.pieces(1):
            torch.testing.assert_close(policy(piece), whole[place], rtol=1e-4, atol=1e-5)


def test_loss_and_gradient_are_those_of_plain_logits(folder: Path) -> None:
    """Forward KL and the game, from transformers' own logits by automatic differentiation."""
    weights = Weights(kl=0.4, game=1.3, critic_penalty=0.8)
    teacher, batch = load(folder), build_batch(PAIRS)
    with torch.inference_mode():
        teacher_hiddens, p = teacher(batch), own_logits(teacher.model).softmax(-1)
    plain, policy = shaken(folder), shaken(folder)
    logq = own_logits(plain.model).log_softmax(-1)
    critic = ((p - logq.exp()) / (p + logq.exp()) / weights.critic_penalty).detach()
    terms = weights.kl * p * (p.log() - logq) + weights.game * (p - logq.exp()) * critic
    expected = terms.sum(-1).mean()
    expected.backward()
    states = States(
        teacher_hiddens=teacher_hiddens.clone(),
        teacher_head=teacher.head.detach(),
        targets=batch.targets,
        last_in_row=batch.last_in_row,
    )
    found, _ = matching_loss(
        policy(batch), policy.head, states=states, weights=weights, score=Score(), chunk_tokens=5
    )
    found.backward()
    torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-5)
    names = [name for name, _ in policy.named_parameters()]
    assert len(names) == len(set(names)) == len(list(plain.parameters()))
    for name, one, other in zip(names, policy.parameters(), plain.parameters(), strict=True):
        assert one.grad is not None, name
        torch.testing.assert_close(one.grad, other.grad, rtol=2e-3, atol=2e-5)  # float32, other sums


def test_recomputed_activations_give_the_same_gradient(folder: Path) -> None:
    grads = []
    for recompute in (False, True):
        policy = load(folder)
        if recompute:
            policy.checkpoint_activations()
        policy(build_batch(PAIRS)).square().sum().backward()
        grads.append([parameter.grad for parameter in policy.parameters()])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def idle(model: PreTrainedModel, stack: Stack, index: int) -> None:
    """Let a layer pass on what it gets."""
    layer = layers_of(model, stack)[index]
    with torch.no_grad():
        for part in layer.layer:
            for name, parameter in part.named_parameters():
                if name.endswith((".o.weight", ".wo.weight")):
                    parameter.zero_()


@pytest.mark.parametrize("stack", list(Stack))
@pytest.mark.parametrize("index", [0, 2])
def test_a_stack_without_an_idle_layer_computes_the_same(
    folder: Path, tmp_path: Path, stack: Stack, index: int
) -> None:
    """Also without its first one, which has the bias of relative positions of all."""
    model = load_model(folder, dtype=torch.float32)
    idle(model, stack, index)
    influence = block_influence(model, build_batch(PAIRS), stack=stack)
    assert len(influence) == 4
    assert abs(influence[index]) < 1e-6 < 1e-4 < min(influence[:index] + influence[index + 1 :])
    with torch.inference_mode():
        expected = own_logits(model)
    cut_layers(model, [place for place in range(4) if place != index], stack=stack)
    with torch.inference_mode():
        torch.testing.assert_close(own_logits(model), expected, rtol=1e-4, atol=1e-5)
    save_checkpoint(model, load_tokenizer(folder), tmp_path / "cut")
    found = load_model(tmp_path / "cut", dtype=torch.float32)
    assert [len(layers_of(found, one)) for one in Stack] == [3 if one is stack else 4 for one in Stack]
    with torch.inference_mode():
        torch.testing.assert_close(own_logits(found), expected, rtol=1e-4, atol=1e-5)


def test_stacks_of_unlike_depth_still_write_what_generate_does(folder: Path) -> None:
    from ammd.distill.rollout import Sampling, sample_responses

    model = load_model(folder, dtype=torch.float32)
    cut_layers(model, [0, 3], stack=Stack.ENCODER)
    cut_layers(model, [0, 1, 3])
    sampling = Sampling(max_new_tokens=8, temperature=0.0, end_token_ids=(1,), batch_size=2)
    found = sample_responses(
        model, [prompt for prompt, _ in PAIRS], sampling=sampling, randomness=torch.Generator()
    )
    for (prompt, _), response in zip(PAIRS, found, strict=True):
        # With a cache, transformers' generate takes room for as many layers as the encoder has, and fails.
        expected = model.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False, use_cache=False)
        assert response == expected[0, 1:].tolist()


def prepared(teacher: Path, tmp_path: Path, **changes: Any) -> tuple[Path, dict[str, Any]]:
    train_file, heldout = tmp_path / "train.jsonl", tmp_path / "heldout.jsonl"
    rows = [{"prompt": f"translate the {i} in a"} for i in range(15)]
    rows += [{"prompt": "sum up then", "response": "the an in"}]
    train_file.write_text("\n".join(map(json.dumps, changes.pop("rows", rows))))
    heldout.write_text(json.dumps({"prompt": "sum up an", "response": "reference"}))
    settings = PrepareSettings.model_validate(
        {
            "teacher": str(teacher),
            "student": {"kind": "depth", "layers": 3},
            "prompts": str(train_file),
            "heldout": str(heldout),
            "response_tokens": 8,
            "seed": 5,
            **changes,
        }
    )
    folder = tmp_path / "prepare"
    folder.mkdir()
    return folder, prepare.run(prepare.PrepareInputs(), settings, folder)


def distill(source: Path, out: Path, settings: dict[str, Any], **more: Any) -> dict[str, Any]:
    wanted = DistillSettings.model_validate({"batch_size": 8, "precision": "float32", "seed": 5, **settings})
    out.mkdir()
    return stage.run(stage.DistillInputs(prepared=source, **more), wanted, out)


def curves(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "curves.jsonl").read_text().splitlines()]


def test_both_stages_from_prompts_to_a_trained_student(folder: Path, tmp_path: Path) -> None:
    source, facts = prepared(folder, tmp_path)
    examples = read_examples(source / "train.jsonl")
    assert all(example.prompt_ids[-1] == 1 for example in examples)
    assert examples[-1].response == "the an in"
    assert examples[-1].response_ids[-1] == 1
    student = facts["student"]
    assert len(student["kept_layers"]) == len(student["kept_encoder_layers"]) == 3
    assert {0, 3} <= set(student["kept_layers"]) & set(student["kept_encoder_layers"])
    pairs = [(example.prompt_ids, example.response_ids) for example in examples]
    TeacherStates(source).check(load(source / "teacher"), pairs)
    facts = distill(
        source,
        tmp_path / "out",
        {
            "warm": {"steps": 30, "lr": 3e-3},
            "objective": {"kind": "ammd", "steps": 10, "lr": 1e-3, "discount": 0.5, "rollout_reuse_steps": 2},
        },
    )
    assert (facts["layers"], facts["encoder_layers"]) == (3, 3)
    rows = curves(tmp_path / "out")
    assert [row["phase"] for row in rows] == ["warm"] * 30 + ["ammd"] * 10
    assert rows[29]["kl_nats"] < 0.6 * rows[0]["kl_nats"]
    assert all("d_on" in row and "d_off" in row for row in rows[30:])
    trained = load_model(tmp_path / "out/student", dtype=torch.float32)
    tied = trained.get_output_embeddings().weight is trained.get_input_embeddings().weight
    assert tied == (folder.parent.name.startswith("t5"))


OBJECTIVES = [
    {"kind": "ammd", "critic": {"kind": "linear", "start": "zero", "ascent_tokens": 32, "min_share": 0.0}},
    {"kind": "ammd", "critic": {"kind": "lowrank", "start": "log_ratio"}},
    {"kind": "ammd", "critic": {"kind": "mlp", "hidden": 8, "min_share": 0.0}},
    {"kind": "le_cam"},
    {"kind": "sft"},
    {"kind": "forward_kl", "student_share": 0.5},
    {"kind": "reverse_kl"},
    {"kind": "gjsd"},
    {"kind": "tv"},
    {"kind": "skew_kl"},
    {"kind": "skew_rkl"},
    {"kind": "distillm", "check_steps": 1, "validation_texts": 3, "tolerance": 0},
    {"kind": "minillm"},
]


@pytest.fixture(scope="module")
def ready(tiny_flan_t5: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder; not to be changed."""
    return prepared(tiny_flan_t5, tmp_path_factory.mktemp("ready"))[0]


@pytest.mark.parametrize(
    "objective", OBJECTIVES, ids=lambda one: one["kind"] + str(one.get("critic", {}).get("kind", ""))
)
def test_every_objective_trains_it(ready: Path, tmp_path: Path, objective: dict[str, Any]) -> None:
    facts = distill(
        ready, tmp_path / "out", {"warm": {"steps": 1}, "objective": {"steps": 4, "lr": 1e-3, **objective}}
    )
    assert facts["objective"] == objective["kind"]
    assert len(curves(tmp_path / "out")) == 5
    before, after = load(ready / "student"), load(tmp_path / "out" / "student")
    moved = [
        not torch.equal(one, other)
        for one, other in zip(before.parameters(), after.parameters(), strict=True)
    ]
    assert all(moved)  # both stacks, the position biases and the head


MORE = [
    {"micro_batch_size": 3},
    {"checkpoint_activations": True, "micro_batch_size": 4},
    {"chunk_tokens": 3},
]


@pytest.mark.parametrize("more", MORE, ids=str)
def test_what_saves_memory_changes_nothing(
    ready: Path, tmp_path: Path, check_same: Callable[..., None], more: dict[str, Any]
) -> None:
    settings = {"warm": {"steps": 2, "lr": 1e-3}, "objective": {"kind": "ammd", "steps": 3, "lr": 1e-3}}
    distill(ready, tmp_path / "one", settings)
    distill(ready, tmp_path / "other", {**settings, **more})
    check_same(ready, tmp_path / "one", tmp_path / "other", steps=5)


def test_adapters_train_both_stacks(ready: Path, tmp_path: Path) -> None:
    settings = {
        "lora": {"rank": 4},
        "warm": {"steps": 20, "lr": 1e-2},
        "objective": {"kind": "sft", "steps": 1},
    }
    distill(ready, tmp_path / "out", settings)
    rows = curves(tmp_path / "out")
    assert rows[19]["kl_nats"] < 0.8 * rows[0]["kl_nats"]
    before, after = load(ready / "student"), load(tmp_path / "out" / "student")
    assert torch.equal(before.head.bfloat16().float(), after.head)
    for stack in Stack:
        first, last = (
            layers_of(one.model, stack)[0].layer[0].SelfAttention.q.weight for one in (before, after)
        )
        assert not torch.equal(first, last)


def test_a_killed_training_goes_on_to_the_same_bytes(
    ready: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    measured: Callable[[Path], list[dict[str, Any]]],
    stop_at: Callable[[pytest.MonkeyPatch, str, int], None],
) -> None:
    settings = {
        "warm": {"steps": 3, "lr": 1e-3},
        "objective": {"kind": "ammd", "steps": 6, "lr": 1e-3, "discount": 0.5, "rollout_reuse_steps": 4},
    }
    distill(ready, tmp_path / "whole", settings)
    monkeypatch.setenv("AMMD_SNAPSHOT_SECONDS", "0")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, "ammd", 3)
        distill(ready, tmp_path / "cut", settings, resume=tmp_path / "state")
    distill(ready, tmp_path / "resumed", settings, resume=tmp_path / "state")
    assert measured(tmp_path / "resumed") == measured(tmp_path / "whole")
    for name in ("warm", "student"):
        expected = hash_file(tmp_path / "whole" / name / "model.safetensors")
        assert hash_file(tmp_path / "resumed" / name / "model.safetensors") == expected


def test_another_model_of_the_family_learns_from_it(
    tiny_t5: Path, build_t5: Callable[..., Path], tmp_path: Path
) -> None:
    """A tied, scaled head teaches one that is neither, in fewer layers."""
    smaller = build_t5(tmp_path / "smaller", tied=False, layers=2, encoder_layers=3, seed=2)
    source, _ = prepared(tiny_t5, tmp_path, student={"kind": "model", "source": str(smaller)})
    objective = {"kind": "ammd", "steps": 10, "lr": 3e-3}
    distill(source, tmp_path / "out", {"warm": {"steps": 30, "lr": 3e-3}, "objective": objective})
    rows = curves(tmp_path / "out")
    assert rows[29]["kl_nats"] < 0.7 * rows[0]["kl_nats"]
    assert rows[-1]["tv_off"] < 0.7 * rows[0]["tv_off"]
    assert load_model(tmp_path / "out/student", dtype=torch.float32).config.num_layers == 3


@pytest.mark.parametrize("encodes", ["student", "teacher"])
def test_either_kind_of_model_teaches_the_other(
    tiny_t5: Path, tiny_checkpoint: Path, tmp_path: Path, encodes: str
) -> None:
    """Each renders and spells a text its own way: chat template or source, byte-level tokens or pieces."""
    teacher, student = (tiny_checkpoint, tiny_t5) if encodes == "student" else (tiny_t5, tiny_checkpoint)
    # The pieces hold too little of what a random model of bytes says for its distributions to be compared.
    objective = "sft" if encodes == "student" else "ammd"
    texts = [{"prompt": f"sum up {i}", "response": f"the {i} in an"} for i in range(16)]
    source, _ = prepared(
        teacher, tmp_path, rows=texts, student={"kind": "model", "source": str(student), "tokenizer": "own"}
    )
    settings = {"warm": {"steps": 30, "lr": 3e-3}, "objective": {"kind": objective, "steps": 3}}
    distill(source, tmp_path / "out", settings)
    rows = curves(tmp_path / "out")
    assert rows[29]["loss"] < 0.6 * rows[0]["loss"]
    if objective == "ammd":
        assert all(row["compared_off"] > 0.5 for row in rows)


def test_the_encoder_is_cut_as_far_as_one_says(build_t5: Callable[..., Path], tmp_path: Path) -> None:
    teacher = build_t5(tmp_path / "teacher", layers=5, encoder_layers=4)
    student = {"kind": "depth", "layers": 2, "encoder_layers": 3}
    source, facts = prepared(teacher, tmp_path, student=student)
    model = load_model(source / "student", dtype=torch.float32)
    assert (len(layers_of(model)), len(layers_of(model, Stack.ENCODER))) == (2, 3)
    assert (model.config.num_decoder_layers, model.config.num_layers) == (2, 3)
    assert len(facts["student"]["encoder_block_influence"]) == 4


def test_both_stacks_go_in_stages(build_t5: Callable[..., Path], tmp_path: Path) -> None:
    """Six and four layers to three and two: five and three, four and three, three and two."""
    teacher = build_t5(tmp_path / "teacher", layers=6, encoder_layers=4)
    student = {"kind": "depth", "layers": 3, "stages": 3}
    source, facts = prepared(teacher, tmp_path, student=student)
    assert facts["student"]["layers_to_come"] == [4, 3]
    assert facts["student"]["encoder_layers_to_come"] == [3, 2]
    first = {key: facts["student"][key] for key in ("kept_layers", "kept_encoder_layers")}
    settings = {"warm": {"steps": 4, "lr": 1e-3}, "objective": {"kind": "sft", "steps": 1}}
    facts = distill(source, tmp_path / "out", settings)
    assert [row["phase"] for row in curves(tmp_path / "out")] == [
        "warm 1",
        "warm 2",
        "warm 3",
        "warm 3",
        "sft",
    ]
    assert (facts["layers"], facts["encoder_layers"]) == (3, 2)
    for key, count in (("kept_layers", 3), ("kept_encoder_layers", 2)):
        assert len(facts[key]) == count
        assert set(facts[key]) < set(first[key])
    model = load_model(tmp_path / "out/student", dtype=torch.float32)
    assert [len(layers_of(model, stack)) for stack in (Stack.DECODER, Stack.ENCODER)] == [3, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"student": {"kind": "depth", "layers": 5}},
            "a student of `5` layers cannot be cut from a teacher of 4",
        ),
        (
            {"student": {"kind": "depth", "layers": 3, "encoder_layers": 5}},
            "a student of `5` encoder layers cannot be cut from a teacher of 4",
        ),
        (
            {"student": {"kind": "width", "intermediate_size": 32}},
            "cannot make a `T5ForConditionalGeneration` narrower",
        ),
        ({"vocabulary": {}}, "vocabulary"),
    ],
)
def test_what_cannot_be_cut_is_refused_in_one_line(
    tiny_t5: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(DistillError, match=message) as caught:
        prepared(tiny_t5, tmp_path, **changes)
    assert caught.value.hint


def test_a_teacher_without_encoder_has_no_encoder_layers(tiny_checkpoint: Path, tmp_path: Path) -> None:
    student = {"kind": "depth", "layers": 3, "encoder_layers": 3}
    with pytest.raises(DistillError, match="cannot be cut from a teacher without encoder"):
        prepared(tiny_checkpoint, tmp_path, student=student)


def test_a_conversation_is_refused_with_its_line(tiny_t5: Path, tmp_path: Path) -> None:
    turns = [{"role": role, "content": "an"} for role in ("user", "assistant", "user")]
    with pytest.raises(DataError, match=r"train\.jsonl` line 2: a model without chat template") as caught:
        prepared(tiny_t5, tmp_path, rows=[{"prompt": "an"}, {"messages": turns}])
    assert caught.value.facts["line"] == 2


def test_weights_are_not_rounded_for_files_of_an_unknown_kind(ready: Path, tmp_path: Path) -> None:
    with pytest.raises(DistillError, match="how a model of type `t5` is stored"):
        distill(ready, tmp_path / "out", {"quantize_as": "gguf-q8_0"})
