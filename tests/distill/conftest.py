"""A process small enough to enumerate: vocabulary 3, horizon 3, every sequence."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from ammd.distill.chunked import States

VOCABULARY, HORIZON = 3, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ToyProcess:
    """Tabular policies over all prefixes. Logits are [VOCABULARY, prefixes], so that each prefix is a hidden unit."""

    prefixes: list[tuple[int, ...]]
    teacher_table: torch.Tensor
    student_table: torch.Tensor  # with gradient
    one_hot: torch.Tensor  # [prefixes, prefixes]

    horizon: int = HORIZON

    def sequences(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield, for every sequence, the rows of the states that it goes through and its tokens."""
        index = {prefix: row for row, prefix in enumerate(self.prefixes)}
        for sequence in itertools.product(range(VOCABULARY), repeat=HORIZON):
            rows = [index[sequence[:t]] for t in range(HORIZON)]
            yield torch.tensor(rows), torch.tensor(sequence)

    def states(self, rows: torch.Tensor, tokens: torch.Tensor, **more: Any) -> States:
        """Return the teacher's side of a sequence as the loss takes it."""
        return States(
            teacher_hiddens=self.one_hot[rows],
            teacher_head=self.teacher_table,
            targets=tokens,
            last_in_row=torch.tensor([False] * (HORIZON - 1) + [True]),
            **more,
        )


@pytest.fixture
def toy_process() -> ToyProcess:
    """Random policies, float32 as the loss has them."""
    prefixes = [p for length in range(HORIZON) for p in itertools.product(range(VOCABULARY), repeat=length)]
    generator = torch.Generator().manual_seed(5)
    tables = [torch.randn(VOCABULARY, len(prefixes), generator=generator) for _ in range(2)]
    return ToyProcess(
        prefixes=prefixes,
        teacher_table=tables[0],
        student_table=tables[1].requires_grad_(),
        one_hot=torch.eye(len(prefixes)),
    )
