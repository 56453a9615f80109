"""The teacher's states on disk: the same numbers come back, and they are what a live teacher gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ammd.distill.batches import TokenPair
from ammd.distill.checkpoint import load_model
from ammd.distill.policy import Policy
from ammd.distill.teacher_states import STATES_NAME, TeacherStates, TeacherStatesWriter
from ammd.errors import DataError


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_come_back_in_any_order(tmp_path: Path, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    states = [torch.randn(length, 7, generator=generator).to(dtype) for length in (3, 1, 5)]
    with TeacherStatesWriter(tmp_path, examples=3, width=7, dtype=dtype) as writer:
        for example in (2, 0, 1):
            writer.append(example, states[example])
    stored = TeacherStates(tmp_path)
    assert torch.equal(stored.rows([0, 1, 2], [3, 1, 5]), torch.cat(states))
    assert torch.equal(stored.rows([2, 0], [5, 3]), torch.cat([states[2], states[0]]))
    assert stored.rows([1], [1]).dtype == dtype


def test_missing_and_foreign_files_are_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read the teacher's states"):
        TeacherStates(tmp_path)
    (tmp_path / STATES_NAME).write_bytes(b"not an array")
    with pytest.raises(DataError, match="cannot read the teacher's states"):
        TeacherStates(tmp_path)


def test_states_of_another_teacher_or_of_other_texts_are_refused(
    small_prepared: Path, pairs: list[TokenPair], tiny_checkpoint: Path
) -> None:
    states = TeacherStates(small_prepared)
    teacher = Policy(load_model(tiny_checkpoint, dtype=torch.float32))
    states.check(teacher, pairs)
    states.check(Policy(load_model(tiny_checkpoint, dtype=torch.bfloat16)), pairs)
    student = Policy(load_model(small_prepared / "student", dtype=torch.float32))
    with pytest.raises(
        DataError, match="are not this teacher's at these texts: those of the first text are off"
    ):
        states.check(student, pairs)
    with pytest.raises(DataError, match="off by"):
        states.check(teacher, [pairs[5], *pairs[1:5], pairs[0], *pairs[6:]])
    with pytest.raises(DataError, match="states of 64 numbers for 16 texts, not"):
        states.check(teacher, pairs[:-1])
