"""The prepare stage with a trimmed vocabulary: what it leaves behind fits together and trains as ever."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ammd.artifact import hash_file
from ammd.conversations import render_prompt
from ammd.distill import device, prepare, stage
from ammd.distill.batches import build_batch
from ammd.distill.checkpoint import load_model, load_tokenizer
from ammd.distill.policy import Policy
from ammd.distill.prompts import Example, read_examples
from ammd.distill.settings import DistillSettings, PrepareSettings
from ammd.distill.student_settings import DepthStudent, ModelStudent
from ammd.distill.teacher_states import TeacherStates
from ammd.errors import DataError, TokenizerMismatchError

PROMPTS = ("the dog, the fox", "over the weather", "größer", "x + 1", "and on and on")


@pytest.fixture(autouse=True)
def in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that states of two ways to them can be compared closely."""
    monkeypatch.setattr(device, "has_fast_bfloat16", lambda: False)


def prepared(checkpoint: Path, tmp_path: Path, **changes: Any) -> tuple[Path, dict[str, Any]]:
    train, heldout = tmp_path / "train.jsonl", tmp_path / "heldout.jsonl"
    rows = [{"prompt": prompt} for prompt in PROMPTS] + [{"prompt": "so", "response": "the lazy dog sleeps"}]
    train.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    heldout.write_text(json.dumps({"prompt": "Whether мягких булок jumps?"}), encoding="utf-8")
    settings = PrepareSettings.model_validate(
        {
            "teacher": str(checkpoint),
            "student": DepthStudent(layers=2),
            "prompts": str(train),
            "heldout": str(heldout),
            "response_tokens": 8,
            "vocabulary": {},
            **changes,
        }
    )
    folder = tmp_path / "prepare"
    folder.mkdir()
    return folder, prepare.run(prepare.PrepareInputs(), settings, folder)


def check_states(folder: Path, *, atol: float = 5e-4) -> list[Example]:
    """Check the stored states against the trimmed teacher on the stored texts, and return these."""
    examples = read_examples(folder / "train.jsonl")
    pairs = [(example.prompt_ids, example.response_ids) for example in examples]
    kept = TeacherStates(folder).rows(range(len(pairs)), [len(response) for _, response in pairs])
    with torch.inference_mode():
        live = Policy(load_model(folder / "teacher", dtype=torch.float32))(build_batch(pairs))
    # Token by token against all at once.
    torch.testing.assert_close(kept.float(), live, rtol=1e-3, atol=atol)
    return examples


def test_the_teachers_texts_are_those_that_it_writes_with_its_full_vocabulary(
    bpe_checkpoint: Path, tmp_path: Path
) -> None:
    source = hash_file(bpe_checkpoint / "model.safetensors")
    (tmp_path / "full").mkdir()
    whole, _ = prepared(bpe_checkpoint, tmp_path / "full", vocabulary=None)
    folder, results = prepared(bpe_checkpoint, tmp_path)
    full, trimmed = load_tokenizer(whole / "teacher"), load_tokenizer(folder / "teacher")
    examples = check_states(folder)
    for before, after in zip(read_examples(whole / "train.jsonl"), examples, strict=True):
        rows = [
            number for number in before.response_ids if number < len(full)
        ]  # a random model takes others too
        assert full.convert_ids_to_tokens(list(before.prompt_ids)) == trimmed.convert_ids_to_tokens(
            list(after.prompt_ids)
        )
        assert full.convert_ids_to_tokens(rows) == trimmed.convert_ids_to_tokens(list(after.response_ids))
        assert after.response == before.response
    assert hash_file(bpe_checkpoint / "model.safetensors") == source
    facts = results["vocabulary"]
    rows = load_model(folder / "teacher", dtype=torch.float32).config.vocab_size
    assert facts["tokens"] == len(trimmed) == rows < facts["tokens_before"] == len(full)
    assert facts["parameters_saved"] == (len(full) + 3 - rows) * 32
    assert facts["respelled_share"] == 0
    assert sum(facts["kept_for"].values()) == facts["tokens"]


def test_heldout_text_decides_nothing_and_is_asked_and_answered_in_kept_tokens(
    bpe_checkpoint: Path, tmp_path: Path
) -> None:
    folder, results = prepared(bpe_checkpoint, tmp_path)
    tokenizer = load_tokenizer(folder / "teacher")
    row = json.loads((folder / "heldout.jsonl").read_text(encoding="utf-8"))
    chat = [{"role": "user", "content": row["prompt"]}]
    assert row["prompt_ids"] == list(render_prompt(tokenizer, chat))
    assert len(row["prompt_ids"]) > len(render_prompt(load_tokenizer(bpe_checkpoint), chat))
    assert 0 < results["vocabulary"]["heldout_respelled_share"] < 1
    teacher = load_model(folder / "teacher", dtype=torch.float32)
    ids = torch.tensor([row["prompt_ids"] + row["response_ids"]])
    with torch.inference_mode():
        best = teacher(input_ids=ids).logits[0, len(row["prompt_ids"]) - 1 : -1].argmax(-1)
    assert best.tolist() == row["response_ids"]


def test_with_fewer_tokens_texts_are_spelled_in_more_and_states_made_anew(
    bpe_checkpoint: Path, tmp_path: Path
) -> None:
    (tmp_path / "whole").mkdir()
    whole, _ = prepared(bpe_checkpoint, tmp_path / "whole", response_tokens=40)
    folder, results = prepared(bpe_checkpoint, tmp_path, vocabulary={"max_tokens": 280}, response_tokens=40)
    examples, before = check_states(folder), read_examples(whole / "train.jsonl")
    assert results["vocabulary"]["tokens"] == 280
    assert 0 < results["vocabulary"]["respelled_share"] < 1
    assert all(len(example.response_ids) <= 40 for example in examples)
    assert sum(len(example.prompt_ids) for example in examples) > sum(len(old.prompt_ids) for old in before)
    for old, new in zip(before, examples, strict=True):
        assert old.response.encode().startswith(new.response.rstrip("\ufffd").encode())
    assert examples[-1].response == "the lazy dog sleeps"


def test_the_copy_that_writes_in_bfloat16_is_trimmed_too(
    bpe_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "has_fast_bfloat16", lambda: True)
    folder, _ = prepared(bpe_checkpoint, tmp_path, vocabulary={"max_tokens": 280})
    # States are of size 1: bfloat16 is off by some hundredths, another token's row by more than 1.
    check_states(folder, atol=0.1)


def test_a_student_of_its_own_is_trimmed_as_the_teacher_is(bpe_checkpoint: Path, tmp_path: Path) -> None:
    folder, _ = prepared(bpe_checkpoint, tmp_path, student=ModelStudent(source=str(bpe_checkpoint)))
    teacher, student = (load_model(folder / name, dtype=torch.float32) for name in ("teacher", "student"))
    for one, other in zip(teacher.parameters(), student.parameters(), strict=True):
        assert torch.equal(one, other)
    for name in ("tokenizer.json", "generation_config.json"):
        assert (folder / "student" / name).read_bytes() == (folder / "teacher" / name).read_bytes()


def test_a_student_with_another_tokenizer_is_refused(
    bpe_checkpoint: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(TokenizerMismatchError, match="number their tokens differently"):
        prepared(bpe_checkpoint, tmp_path, student=ModelStudent(source=str(tiny_checkpoint)))


def test_the_heldout_file_may_not_choose_what_is_kept(bpe_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "heldout.jsonl")
    with pytest.raises(DataError, match=r"`prepare\.vocabulary\.texts` names the held-out file"):
        prepared(bpe_checkpoint, tmp_path, vocabulary={"texts": [str(tmp_path / "link.jsonl")]})


def test_training_goes_on_from_it(bpe_checkpoint: Path, tmp_path: Path) -> None:
    folder, _ = prepared(bpe_checkpoint, tmp_path)
    settings = DistillSettings.model_validate(
        {"batch_size": 2, "precision": "float32", "warm": {"steps": 1}, "objective": {"steps": 2}}
    )
    (tmp_path / "out").mkdir()
    stage.run(stage.DistillInputs(prepared=folder), settings, tmp_path / "out")
    rows = [json.loads(line) for line in (tmp_path / "out/curves.jsonl").read_text().splitlines()]
    # The student is the teacher with all its layers, so where ids or states were mixed up there would be a distance.
    assert rows[0]["kl_nats"] < 1e-5
    assert rows[-1]["d_on"] < 0.1
