"""Where a phase's batches come from: the teacher's texts, the student's own, or both in each step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from .batches import Batch, TokenPair, build_batch
from .bridge import Bridge, TeacherView
from .snapshots import State

if TYPE_CHECKING:
    import torch

    from .policy import Policy
    from .student_texts import StudentTexts
    from .teacher_states import TeacherStates


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherBatch:
    """Texts of the teacher's with its states at their responses."""

    batch: Batch
    view: TeacherView | None  # None: not kept, so it has to read them


class Supply(Protocol):
    """Gives each step its batches."""

    @property
    def generated_tokens(self) -> int:
        """How many tokens it has had written since it was made."""
        ...

    def batches(self, step: int, student: Policy) -> tuple[TeacherBatch | None, Batch | None]:
        """Return the teacher's texts and the student's for step 1, 2, …; either may be missing, not both."""
        ...

    def state(self) -> State:
        """Return how far it is and what cannot be made again."""
        ...

    def restore(self, state: State) -> None:
        """Take over what `state` returned, in a supply that has just been made."""
        ...


class TeacherTexts:
    """Batches of the teacher's texts in a given order, with the states that were kept when it wrote them, if any."""

    def __init__(
        self,
        pairs: Sequence[TokenPair],
        states: TeacherStates | None,
        order: Iterator[list[int]],
        *,
        dtype: torch.dtype,
        bridge: Bridge | None = None,
        spelled: Sequence[TokenPair] | None = None,
    ) -> None:
        """Take all texts and their states.

        Args:
            pairs: The texts in the student's tokens.
            states: The teacher's at these texts; None where it has not read them.
            order: The indices of each batch.
            dtype: Of matrix products.
            bridge: Between tokenizers, where the student's is its own.
            spelled: The texts in the teacher's tokens, if those are others.
        """
        self._pairs, self._states, self._order, self._dtype = pairs, states, order, dtype
        self._bridge, self._spelled = bridge, pairs if spelled is None else spelled
        self.taken = 0  # batches so far

    def next_batch(self) -> TeacherBatch:
        """Return the next batch of the order."""
        self.taken += 1
        return self.batch_of(next(self._order))

    def skip(self, batches: int) -> None:
        """Leave out batches, as if they had been taken."""
        for _ in range(batches):
            next(self._order)
        self.taken += batches

    def batch_of(self, chosen: Sequence[int]) -> TeacherBatch:
        """Return the texts at these indices as a batch."""
        batch = build_batch([self._pairs[index] for index in chosen])
        if self._states is None:
            return TeacherBatch(batch=batch, view=None)
        responses = [self._spelled[index][1] for index in chosen]
        states = self._states.rows(chosen, [len(response) for response in responses])
        view = TeacherView(hiddens=states)
        if self._bridge is not None:
            view = self._bridge.place(states, [self._pairs[index][1] for index in chosen], responses)
        return TeacherBatch(batch=batch, view=view.to(self._dtype))


@dataclass(frozen=True, slots=True, kw_only=True)
class BothSides:
    """Every step has a batch of each kind that is there."""

    teacher_texts: TeacherTexts | None
    student_texts: StudentTexts | None

    @property
    def generated_tokens(self) -> int:
        """See `Supply`."""
        return self.student_texts.generated_tokens if self.student_texts else 0

    def batches(self, _step: int, student: Policy) -> tuple[TeacherBatch | None, Batch | None]:
        """See `Supply`."""
        off = self.teacher_texts.next_batch() if self.teacher_texts else None
        on = self.student_texts.next_batch(student) if self.student_texts else None
        return off, on

    def state(self) -> State:
        """See `Supply`."""
        whole = State(facts={"taken": self.teacher_texts.taken if self.teacher_texts else 0})
        if self.student_texts:
            whole.put("student_texts", self.student_texts.state())
        return whole

    def restore(self, state: State) -> None:
        """See `Supply`."""
        if self.teacher_texts:
            self.teacher_texts.skip(state.facts["taken"])
        if self.student_texts:
            self.student_texts.restore(state.part("student_texts"))
