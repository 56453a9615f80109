"""A student that computes with the weights its file will hold, and learns in those that they are rounded from.

While this is in effect, each parameter *is* the rounded tensor, for whoever uses it: both passes, the head, the
student's texts, a validation loss, a copy. The gradient is therefore exactly the rounded model's, and the straight-
through step is that the optimizer applies it to the float32 master, which is put back for as long as it takes. A weight
moves on through many small steps until it reaches the next rounded value. Where products are bfloat16, they round it
once more, by up to 0.2 %: little beside a step of 4 bits, but as much as Q8_0 itself does.

Parameters keep their identity and names, so optimizer, snapshots and checkpoints know nothing of it, and each is
rounded once a step, not at each use: 0.7 to 0.9 s of one core for 113 M weights. It costs 4 bytes of memory a weight.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .stored_as import Rounding

# Rounded at once on a CPU: what is written on the way stays in the processor's cache (a quarter million
# take twice as long).
_CHUNK_WEIGHTS = 1 << 16


class RoundedWeights:
    """Parameters with what rounds each of them."""

    def __init__(self, roundings: Mapping[torch.nn.Parameter, Rounding]) -> None:
        self._roundings = dict(roundings)
        self._masters: list[torch.Tensor] = []
        self._rounded: list[torch.Tensor] = []

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the parameters hold their rounded values; afterwards they hold their masters, as trained."""
        self._masters = [parameter.data for parameter in self._roundings]
        self._rounded = [torch.empty_like(master) for master in self._masters]
        self._round()
        try:
            yield
        finally:
            self._give_back()
            self._masters, self._rounded = [], []

    @contextmanager
    def lifted(self) -> Iterator[None]:
        """Within `applied`, let the parameters hold their masters; round them anew afterwards."""
        self._give_back()
        try:
            yield
        finally:
            self._round()

    def _give_back(self) -> None:
        for parameter, master in zip(self._roundings, self._masters, strict=True):
            parameter.data = master

    def _round(self) -> None:
        for (parameter, rounding), master, rounded in zip(
            self._roundings.items(), self._masters, self._rounded, strict=True
        ):
            rows = max(1, _CHUNK_WEIGHTS // master.shape[1]) if master.is_cpu else len(master)
            for start in range(0, len(master), rows):
                rounded[start : start + rows] = rounding(master[start : start + rows])
            parameter.data = rounded
