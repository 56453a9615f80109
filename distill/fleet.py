"""The processes that train one student together, each on its share of every batch.

Started by torchrun or by `distill.processes`, every process holds the student, the teacher and the order of all texts,
and runs the networks on its own rows alone. What the rows give is added up: gradients by DistributedDataParallel, what
is measured and the student's texts here. So a step is the same whatever the number of processes, but for rounding. The
first process alone writes files. One process by itself is a fleet of one, in which nothing is sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from accelerate import PartialState
from torch import distributed

from ammd.errors import DistillError

T = TypeVar("T")
_CPU = torch.device("cpu")


class Fleet:
    """This process among all of them."""

    def __init__(self, device: torch.device = _CPU) -> None:
        """Join the processes that were started together; `device` is where this one's networks run."""
        state = PartialState(cpu=device.type == "cpu")
        self._device = device
        self.rank: int = state.process_index
        self.size: int = state.num_processes

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes files."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """Return this process's part of `count` rows: all parts are in order and differ by one row at most."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def check_rows(self, rows: int, *, of: str) -> None:
        """Check that every process has a row.

        Raises:
            DistillError: There are fewer rows than processes.
        """
        if rows < self.size:
            raise DistillError(
                f"{of} of a batch are `{rows}` rows, too few for {self.size} processes",
                hint="raise `distill.batch_size`, or start fewer processes",
            )

    def check_even(self, rows: int, *, of: str) -> None:
        """Check that all processes have as many rows.

        Raises:
            DistillError: They have not.
        """
        if rows % self.size:
            raise DistillError(
                f"{of} of a batch are `{rows}` rows, which {self.size} processes cannot share evenly, as they have to "
                "where a student is divided and its batches come in pieces",
                hint="change `distill.batch_size`, or leave `distill.micro_batch_size` out",
            )

    def sums(self, values: Sequence[float]) -> list[float]:
        """Return the sums over all processes."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self._device)
        distributed.all_reduce(total)
        added: list[float] = total.tolist()
        return added

    def add(self, tensors: Sequence[torch.Tensor]) -> None:
        """Add up tensors over all processes, in place."""
        if self.size > 1:
            for tensor in tensors:
                distributed.all_reduce(tensor)

    def joined(self, part: Sequence[T]) -> list[T]:
        """Return the parts of all processes, one behind the other; they need not be equally long."""
        if self.size == 1:
            return list(part)
        parts: list[Sequence[T]] = [[]] * self.size
        distributed.all_gather_object(parts, list(part))
        return [one for some in parts for one in some]

    def of_first(self, value: T) -> T:
        """Return what the first process has, for what depends on its clock or its files."""
        if self.size == 1:
            return value
        sent = [value]
        distributed.broadcast_object_list(sent, src=0)
        return sent[0]

    def leave(self) -> None:
        """Say goodbye to the other processes; nothing can be sent any more."""
        if self.size > 1:
            distributed.barrier()  # the first may still be writing, and who is left alone may abort
            PartialState().destroy_process_group()
