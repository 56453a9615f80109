"""The teacher's final hidden states at the states of its own responses, kept from when it wrote them.

They save the teacher's pass over its own texts in every training step, and unlike the best few logits they
lose nothing: `head @ state` is the whole distribution. On disk they are one numpy array [N, H] that is appended
to while the teacher writes and read through a memory map; bfloat16, which numpy lacks, is stored as uint16.

teacher_states.npy         [N, H]
teacher_states_start.npy   int64 [examples]: the row of each example's first response token
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
import torch

from ammd.errors import DataError

from .batches import TokenPair, build_batch
from .policy import Policy

STATES_NAME = "teacher_states.npy"
_STARTS_NAME = "teacher_states_start.npy"
# Of the first text's states, read again: rounding to bfloat16 in other batches moves them by about a hundredth.
_GREATEST_DISTANCE = 0.2


class TeacherStatesWriter:
    """Appends states in any order of examples; a context manager."""

    def __init__(self, folder: Path, *, examples: int, width: int, dtype: torch.dtype) -> None:
        """Begin the array in `folder` for `examples` examples and states of `width` numbers in `dtype`."""
        self._folder = folder
        self._width, self._dtype = width, dtype
        self._starts = np.full(examples, -1, dtype=np.int64)
        self._rows = 0
        self._stream: BinaryIO = (folder / STATES_NAME).open("wb")
        self._write_header()

    def append(self, example: int, states: torch.Tensor) -> None:
        """Add the states [n, H] of one example."""
        self._starts[example] = self._rows
        self._rows += len(states)
        self._stream.write(_as_numpy(states.to("cpu", self._dtype).contiguous()).tobytes())

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write the final shape and the index, unless an error is on its way."""
        try:
            if kind is None:
                self._stream.seek(0)
                self._write_header()
                np.save(self._folder / _STARTS_NAME, self._starts)
        finally:
            self._stream.close()

    def _write_header(self) -> None:
        # numpy leaves room for the first axis to grow, so the last header is as long as the first.
        np.lib.format.write_array_header_1_0(
            self._stream,
            {
                "shape": (self._rows, self._width),
                "fortran_order": False,
                "descr": "<u2" if self._dtype == torch.bfloat16 else "<f4",
            },
        )


class TeacherStates:
    """Reads the states of chosen examples from the memory map."""

    def __init__(self, folder: Path) -> None:
        """Open what `TeacherStatesWriter` wrote into `folder`.

        Raises:
            DataError: The files are missing or are not such arrays.
        """
        self._folder = folder
        try:
            self._states: Any = np.load(folder / STATES_NAME, mmap_mode="r", allow_pickle=False)
            self._starts = np.load(folder / _STARTS_NAME, allow_pickle=False)
        except (OSError, ValueError) as exc:
            raise DataError(
                f"cannot read the teacher's states in `{folder}`: {exc}", path=str(folder)
            ) from exc

    def rows(self, examples: Sequence[int], lengths: Sequence[int]) -> torch.Tensor:
        """Return the states of these examples, one after the other. [sum of lengths, H]."""
        pieces = [
            self._states[start : start + length]
            for start, length in zip(self._starts[list(examples)], lengths, strict=True)
        ]
        joined = torch.from_numpy(np.concatenate(pieces))
        return joined.view(torch.bfloat16) if joined.dtype == torch.uint16 else joined

    def check(self, teacher: Policy, pairs: Sequence[TokenPair]) -> None:
        """Check that these are the states of `teacher` at the responses of `pairs`.

        Files that lie in one folder need not belong together. The first text is read again; states of another teacher,
        tokenizer, template or text are far off, those of the same differ by rounding alone.

        Raises:
            DataError: They are not.
        """
        expected = sum(len(response) for _, response in pairs)
        rows, width = self._states.shape
        # More are there where texts were spelled anew: their first states stay, unread.
        if rows < expected or width != teacher.head.shape[1] or len(self._starts) != len(pairs):
            raise self._foreign(
                f"{rows} states of {width} numbers for {len(self._starts)} texts, not {expected} of "
                f"{teacher.head.shape[1]} for {len(pairs)}"
            )
        with torch.inference_mode():
            again = teacher(build_batch(pairs[:1]).to(teacher.device)).float().cpu()
        kept = self.rows([0], [len(again)]).float()
        distance = float((kept - again).norm() / again.norm())
        if not distance < _GREATEST_DISTANCE:
            raise self._foreign(f"those of the first text are off by {distance:.0%}")

    def _foreign(self, how: str) -> DataError:
        return DataError(
            f"the states in `{self._folder}` are not this teacher's at these texts: {how}",
            hint="run the prepare stage again",
            path=str(self._folder),
        )


def _as_numpy(states: torch.Tensor) -> Any:
    return states.view(torch.uint16).numpy() if states.dtype == torch.bfloat16 else states.numpy()
