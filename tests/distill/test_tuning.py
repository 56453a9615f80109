"""A teacher that is fine-tuned first: against AdamW on transformers' own loss, and what the stage leaves behind."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from ammd.artifact import hash_weights
from ammd.distill import device, prepare, stage
from ammd.distill.batches import TokenPair, build_batch
from ammd.distill.checkpoint import load_model, load_tokenizer
from ammd.distill.loop import learning_rate_share
from ammd.distill.policy import Policy
from ammd.distill.prompts import read_examples
from ammd.distill.settings import DistillSettings, PrepareSettings
from ammd.distill.teacher_states import TeacherStates
from ammd.encoder_decoder import is_encoder_decoder
from ammd.errors import DataError

STEPS, RATE = 12, 3e-3
ROWS = [{"prompt": prompt, "response": "the cat"} for prompt in ("a dog", "the fox", "over it", "so")]


@pytest.fixture(autouse=True)
def in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that two ways to the same weights can be compared closely."""
    monkeypatch.setattr(device, "has_fast_bfloat16", lambda: False)


@pytest.fixture(params=("tiny_checkpoint", "tiny_flan_t5"))
def source(request: pytest.FixtureRequest) -> Path:
    """A decoder and an encoder-decoder in turn."""
    folder: Path = request.getfixturevalue(request.param)
    return folder


def prepared(
    source: Path, tmp_path: Path, *, rows: Sequence[dict[str, str]] = ROWS, **changes: Any
) -> tuple[Path, dict[str, Any]]:
    for name, some in (("train", rows), ("heldout", [{"prompt": "an ox", "response": "the cat"}])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, some)), encoding="utf-8")
    settings = PrepareSettings.model_validate(
        {
            "teacher": str(source),
            "student": {"kind": "depth", "layers": 2},
            "prompts": str(tmp_path / "train.jsonl"),
            "heldout": str(tmp_path / "heldout.jsonl"),
            "response_tokens": 6,
            "tuning": {"steps": STEPS, "lr": RATE, "batch_size": len(ROWS)},
            **changes,
        }
    )
    folder = tmp_path / "prepare"
    folder.mkdir()
    return folder, prepare.run(prepare.PrepareInputs(), settings, folder)


def own_loss(model: PreTrainedModel, pairs: Sequence[TokenPair]) -> torch.Tensor:
    """Return transformers' own cross-entropy a response token."""
    total, tokens = torch.zeros(()), 0
    for prompt, response in pairs:
        if is_encoder_decoder(model):
            loss = model(input_ids=torch.tensor([prompt]), labels=torch.tensor([response])).loss
        else:
            labels = [-100] * len(prompt) + list(response)
            loss = model(input_ids=torch.tensor([[*prompt, *response]]), labels=torch.tensor([labels])).loss
        total, tokens = total + loss * len(response), tokens + len(response)
    return total / tokens


def test_the_teacher_is_trained_as_adamw_trains_on_transformers_own_loss(
    source: Path, tmp_path: Path
) -> None:
    folder, results = prepared(source, tmp_path)
    pairs = [example.pair for example in read_examples(folder / "train.jsonl")]
    model = load_model(source, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.0)
    losses = []
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = RATE * learning_rate_share(step, STEPS)
        loss = own_loss(model, pairs)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    lines = [json.loads(line) for line in (folder / "tuning.jsonl").read_text("utf-8").splitlines()]
    assert [line["loss"] for line in lines] == pytest.approx(losses, rel=1e-4)
    tuned = load_model(folder / "teacher", dtype=torch.float32)
    with torch.no_grad():
        assert float(own_loss(tuned, pairs)) == pytest.approx(float(own_loss(model, pairs)), rel=1e-3)
    assert lines[0]["kl_nats"] == pytest.approx(0, abs=1e-6)  # from itself
    assert lines[-1]["kl_nats"] > 0.1
    assert results["tuning"]["trained_tokens"] == STEPS * sum(len(response) for _, response in pairs)


def test_everything_that_follows_is_of_the_tuned_teacher(source: Path, tmp_path: Path) -> None:
    before = hash_weights(source)
    folder, results = prepared(source, tmp_path)
    assert hash_weights(source) == before != hash_weights(folder / "teacher")
    facts = results["tuning"]
    assert (facts["texts"], facts["steps"], facts["heldout_texts"]) == (4, STEPS, 1)
    tokenizer = load_tokenizer(folder / "teacher")
    (row,) = [json.loads(line) for line in (folder / "heldout.jsonl").read_text("utf-8").splitlines()]
    answer = (*tokenizer.encode("the cat", add_special_tokens=False), tokenizer.eos_token_id)[:6]
    for name, nats in ((source, facts["heldout_nats_before"]), (folder / "teacher", facts["heldout_nats"])):
        with torch.no_grad():
            loss = own_loss(load_model(name, dtype=torch.float32), [(row["prompt_ids"], answer)])
        assert nats == pytest.approx(float(loss), rel=1e-4)
    assert facts["heldout_nats"] < 0.7 * facts["heldout_nats_before"]
    pairs = [example.pair for example in read_examples(folder / "train.jsonl")]
    kept = TeacherStates(folder).rows(range(len(pairs)), [len(response) for _, response in pairs])
    teacher = Policy(load_model(folder / "teacher", dtype=torch.float32))
    with torch.inference_mode():
        torch.testing.assert_close(kept.float(), teacher(build_batch(pairs)), rtol=1e-3, atol=5e-4)
    assert torch.equal(Policy(load_model(folder / "student", dtype=torch.float32)).head, teacher.head)
    settings = DistillSettings.model_validate(
        {"batch_size": 2, "warm": {"steps": 1}, "objective": {"steps": 1}}
    )
    out = tmp_path / "distill"
    out.mkdir()
    assert stage.run(stage.DistillInputs(prepared=folder), settings, out)["objective_steps"] == 1


def test_a_tuned_teacher_can_write_the_texts_itself(tiny_checkpoint: Path, tmp_path: Path) -> None:
    changes = {"steps": 60, "lr": 1e-2, "batch_size": 4}
    folder, results = prepared(tiny_checkpoint, tmp_path, responses="teacher", temperature=0, tuning=changes)
    assert results["teacher_written"] == 4
    given = [*load_tokenizer(folder / "teacher").encode("the cat", add_special_tokens=False)][:6]
    written = [example.response_ids[: len(given)] for example in read_examples(folder / "train.jsonl")]
    assert written == [tuple(given)] * 4


def test_prompts_without_a_response_teach_it_nothing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    _, results = prepared(tiny_checkpoint, tmp_path, rows=[{"prompt": "alone"}, *ROWS])
    assert (results["tuning"]["texts"], results["teacher_written"]) == (4, 1)


def test_data_without_any_response_are_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"`prepare.tuning` learns from given responses, and `.*train.jsonl`"):
        prepared(tiny_checkpoint, tmp_path, rows=[{"prompt": "alone"}])
    assert not [*(tmp_path / "prepare").iterdir()]  # before any model is touched


def test_so_are_chosen_prompts_without_any_response(tiny_checkpoint: Path, tmp_path: Path) -> None:
    long = {"prompt": "the fox " * 40, "response": "the cat"}
    with pytest.raises(DataError, match=r"`prepare.tuning` learns from given responses"):
        prepared(tiny_checkpoint, tmp_path, rows=[{"prompt": "alone"}, long], max_prompt_tokens=60)
