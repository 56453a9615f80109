"""A folder as the prepare stage writes it, small enough for many trainings."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ammd.distill.batches import TokenPair, build_batch
from ammd.distill.checkpoint import load_model, load_tokenizer, save_checkpoint
from ammd.distill.policy import Policy
from ammd.distill.prompts import Example, write_examples
from ammd.distill.teacher_states import TeacherStatesWriter


@pytest.fixture
def pairs() -> list[TokenPair]:
    """Prompts and responses of different lengths."""
    prompts = [(1, 9, 20 + i, *range(30, 31 + i % 3)) for i in range(16)]
    responses = [(*range(40, 41 + i % 5), 50 + i, 2) for i in range(16)]
    return list(zip(prompts, responses, strict=True))


@pytest.fixture
def small_prepared(tiny_checkpoint: Path, tmp_path: Path, pairs: list[TokenPair]) -> Path:
    """The tiny teacher, a student that is some way off, and the teacher's states at `pairs`."""
    folder = tmp_path / "small-prepared"
    folder.mkdir()
    teacher = Policy(load_model(tiny_checkpoint, dtype=torch.float32))
    (folder / "teacher").symlink_to(tiny_checkpoint)
    student = load_model(tiny_checkpoint, dtype=torch.float32)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    save_checkpoint(student, load_tokenizer(tiny_checkpoint), folder / "student")
    write_examples(
        folder / "train.jsonl",
        [Example(prompt="", response="", prompt_ids=ids, response_ids=answer) for ids, answer in pairs],
    )
    width = teacher.head.shape[1]
    with (
        torch.inference_mode(),
        TeacherStatesWriter(folder, examples=len(pairs), width=width, dtype=torch.float32) as states,
    ):
        for index, pair in enumerate(pairs):
            states.append(index, teacher(build_batch([pair])))
    return folder
