"""The prepare stage on a task: which rows are trained on and held out, and with which answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ammd.conversations import render_prompt
from ammd.distill import prepare
from ammd.distill.checkpoint import load_tokenizer
from ammd.distill.prompts import read_examples
from ammd.distill.settings import PrepareSettings
from ammd.errors import DataError, RecipeError

TASK = """
name = "mine"
version = 1
description = "Mine."
kind = "summarization"
data = { train = "mine/train.jsonl", dev = "mine/dev.jsonl", test = "mine/test.jsonl" }
prompt = "Say {source}"
references = ["all", "target"]
"""
ROWS = {
    "train": [{"source": text, "target": f"{text}!"} for text in ("a {b}", "the", "in " * 120, "an")],
    "dev": [{"source": "x", "all": ["y", "z"]}, {"source": "the " * 600, "all": ["w"]}],
    "test": [{"source": "never", "target": "read"}],
}


def write(folder: Path, *, splits: tuple[str, ...] = ("train", "dev", "test"), task: str = TASK) -> Path:
    for split in splits:
        path = folder / "data" / "mine" / f"{split}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS[split]), encoding="utf-8")
    (folder / "mine.toml").write_text(task, encoding="utf-8")
    return folder


def prepared(teacher: Path, folder: Path, **changes: Any) -> tuple[Path, dict[str, Any]]:
    settings = PrepareSettings.model_validate(
        {
            "teacher": str(teacher),
            "student": {"kind": "depth", "layers": 2},
            "task": str(folder / "mine.toml"),
            "data": str(folder / "data"),
            "response_tokens": 8,
            **changes,
        }
    )
    out = folder / "prepare"
    out.mkdir()
    return out, prepare.run(prepare.PrepareInputs(), settings, out)


def heldout_rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "heldout.jsonl").read_text(encoding="utf-8").splitlines()]


def test_the_train_split_is_learnt_and_the_dev_split_held_out_with_references(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    folder, results = prepared(tiny_checkpoint, write(tmp_path))
    examples = read_examples(folder / "train.jsonl")
    assert [(example.prompt, example.response) for example in examples[:2]] == [
        ("Say a {b}", "a {b}!"),
        ("Say the", "the!"),
    ]
    assert (results["teacher_written"], len(examples)) == (0, 4)
    tokenizer = load_tokenizer(folder / "teacher")
    assert examples[0].prompt_ids == render_prompt(tokenizer, [{"role": "user", "content": "Say a {b}"}])
    found = heldout_rows(folder)
    assert [(row["prompt"], row["reference"]) for row in found[:1]] == [("Say x", "y")]
    assert all("never" not in row["prompt"] for row in found)


def test_the_teacher_writes_the_responses_where_the_recipe_says_so(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    folder, results = prepared(tiny_checkpoint, write(tmp_path), responses="teacher")
    assert results["teacher_written"] == 4
    assert [example.response for example in read_examples(folder / "train.jsonl")[:2]] != ["a {b}!", "the!"]


def test_the_test_split_is_held_out_where_there_is_no_dev(tiny_checkpoint: Path, tmp_path: Path) -> None:
    task = TASK.replace('dev = "mine/dev.jsonl", ', "")
    folder, _ = prepared(tiny_checkpoint, write(tmp_path, splits=("train", "test"), task=task))
    assert [row["prompt"] for row in heldout_rows(folder)] == ["Say never"]


def test_prompts_that_are_too_long_are_left_out_and_counted(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder, results = prepared(tiny_checkpoint, write(tmp_path), max_prompt_tokens=100)
    prompts = {example.prompt for example in read_examples(folder / "train.jsonl")}
    assert prompts == {"Say a {b}", "Say the", "Say an"}
    assert [row["prompt"] for row in heldout_rows(folder)] == ["Say x"]
    assert (results["train_left_out"], results["heldout_left_out"]) == (1, 1)
    training, held_out = results["warnings"]
    assert training == "1 of 4 training prompts have more than 100 tokens and are left out"
    assert held_out == "1 of 2 held-out prompts have more than 100 tokens and are left out"


def test_a_context_without_room_leaves_rows_of_a_task_out(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [*ROWS["train"], {"source": "x" * 600, "target": "long"}]  # a byte a token, in a context of 512
    monkeypatch.setitem(ROWS, "train", rows)
    folder, results = prepared(tiny_checkpoint, write(tmp_path))
    assert len(read_examples(folder / "train.jsonl")) == 4
    assert results["warnings"] == [
        "1 of 5 training prompts have more than 504 tokens and are left out",
        "1 of 2 held-out prompts have more than 504 tokens and are left out",
    ]


def test_a_limit_below_every_prompt_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"each training prompt of `.*train.jsonl` has more than 2 tokens"):
        prepared(tiny_checkpoint, write(tmp_path), max_prompt_tokens=2)


def test_long_prompts_of_a_file_are_left_out_where_asked(tiny_checkpoint: Path, tmp_path: Path) -> None:
    for name, texts in (("train", ("a", "b" * 90)), ("heldout", ("c",))):
        lines = [json.dumps({"prompt": text, "response": "r"}) for text in texts]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    files = {"prompts": str(tmp_path / "train.jsonl"), "heldout": str(tmp_path / "heldout.jsonl")}
    folder, results = prepared(tiny_checkpoint, tmp_path, task=None, max_prompt_tokens=80, **files)
    assert [example.prompt for example in read_examples(folder / "train.jsonl")] == ["a"]
    assert results["warnings"] == ["1 of 2 training prompts have more than 80 tokens and are left out"]


def test_the_held_out_file_of_a_task_decides_no_vocabulary(tiny_checkpoint: Path, tmp_path: Path) -> None:
    texts = [str(tmp_path / "data" / "mine" / "dev.jsonl")]
    with pytest.raises(DataError, match=r"`prepare\.vocabulary\.texts` names the held-out file"):
        prepared(tiny_checkpoint, write(tmp_path), vocabulary={"texts": texts})


@pytest.mark.parametrize(
    "task",
    [
        TASK.replace('train = "mine/train.jsonl", ', ""),
        TASK.replace(', dev = "mine/dev.jsonl", test = "mine/test.jsonl"', ""),
        TASK.replace('"summarization"', '"perplexity"').replace('prompt = "Say {source}"', ""),
    ],
)
def test_a_task_to_judge_by_trains_nothing(tiny_checkpoint: Path, tmp_path: Path, task: str) -> None:
    with pytest.raises(RecipeError, match="task `mine` is to judge by"):
        prepared(tiny_checkpoint, write(tmp_path, task=task))
