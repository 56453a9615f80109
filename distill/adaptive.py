"""DistiLLM's adaptive use of the student's own texts, with a replay buffer (Ko 2024, arXiv 2402.03898, section 3.2).

Training begins on the teacher's texts alone. Whenever the loss on validation texts has risen since the last look,
the share of steps that use the student's texts grows. Those come from a buffer of texts sampled before; new ones
are sampled less and less often as training goes on, and always while the buffer is not full.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from .batches import Batch, TokenPair, build_batch
from .snapshots import State

if TYPE_CHECKING:
    from .policy import Policy
    from .settings import DistiLLM
    from .student_texts import StudentTexts
    from .supply import TeacherBatch, TeacherTexts


class AdaptiveSupply:
    """A batch of one kind in each step. Implements `Supply`."""

    def __init__(
        self,
        settings: DistiLLM,
        *,
        teacher_texts: TeacherTexts,
        student_texts: StudentTexts,
        validate: Callable[[Policy], float],
        batch_size: int,
        seed: int,
    ) -> None:
        """Take both kinds of texts, and what measures the student's loss on validation texts."""
        self._settings = settings
        self._teacher_texts, self._student_texts = teacher_texts, student_texts
        self._validate = validate
        self._batch_size = batch_size
        self._generator = torch.Generator().manual_seed(seed)
        self._replay: deque[TokenPair] = deque(maxlen=settings.replay_texts)
        self._last_loss: float | None = None
        self.student_share = 0.0  # of steps

    @property
    def generated_tokens(self) -> int:
        """See `Supply`."""
        return self._student_texts.generated_tokens

    def batches(self, step: int, student: Policy) -> tuple[TeacherBatch | None, Batch | None]:
        """See `Supply`."""
        if (step - 1) % self._settings.check_steps == 0:
            self._look(student)
        drawn = float(torch.rand((), generator=self._generator))
        if drawn >= self.student_share:
            return self._teacher_texts.next_batch(), None
        is_full = len(self._replay) == self._settings.replay_texts
        if not is_full or drawn < self.student_share * (1 - (step - 1) / self._settings.steps):
            self._replay.extend(self._student_texts.sample(student))
        chosen = torch.randperm(len(self._replay), generator=self._generator)[: self._batch_size].tolist()
        return None, build_batch([self._replay[index] for index in chosen])

    def state(self) -> State:
        """See `Supply`."""
        whole = State(
            tensors={"generator": self._generator.get_state()},
            facts={
                "taken": self._teacher_texts.taken,
                "share": self.student_share,
                "last_loss": self._last_loss,
                "replay": list(self._replay),
            },
        )
        whole.put("student_texts", self._student_texts.state())
        return whole

    def restore(self, state: State) -> None:
        """See `Supply`."""
        self._generator.set_state(state.tensors["generator"])
        self._teacher_texts.skip(state.facts["taken"])
        self.student_share, self._last_loss = state.facts["share"], state.facts["last_loss"]
        self._replay.extend((prompt, response) for prompt, response in state.facts["replay"])
        self._student_texts.restore(state.part("student_texts"))

    def _look(self, student: Policy) -> None:
        loss = self._validate(student)
        if self._last_loss is not None and loss >= self._last_loss + self._settings.tolerance:
            self.student_share = min(1.0, self.student_share + self._settings.share_step)
        self._last_loss = loss
