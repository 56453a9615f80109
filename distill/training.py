"""One student in training: the models and texts that its phases share.

A phase trains the student in place and goes on in the texts where the one before it stopped.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ammd.errors import DistillError

from .batches import cut_batches, endless_order
from .checkpoint import copy_in_dtype, end_token_ids, load_model, load_tokenizer, save_checkpoint
from .objective import Weights
from .policy import Policy
from .prompts import read_examples
from .rollout import Sampling
from .settings import Ammd, OnPolicyPhase
from .sides import Side, sides_of
from .student_texts import StudentTexts
from .teacher_states import TeacherStates
from .trainer import Phase, run_phase, uses_bfloat16

if TYPE_CHECKING:
    from .batches import TokenPair
    from .settings import DistillSettings, Objective, WarmStart


class Training:
    """Teacher, student, texts and the order in which they come."""

    def __init__(self, *, prepared: Path, student: Path, settings: DistillSettings, curves: Path) -> None:
        """Load everything.

        Args:
            prepared: What the prepare stage wrote.
            student: Checkpoint to start from.
            settings: Of the stage; the phases' own are passed to them.
            curves: Receives one line a step.

        Raises:
            DataError: The prepared texts cannot be read.
            DistillError: A model cannot be used.
        """
        self.settings = settings
        self.dtype = torch.bfloat16 if uses_bfloat16(settings) else torch.float32  # of matrix products
        self._tokenizer = load_tokenizer(prepared / "teacher")
        self._teacher = Policy(load_model(prepared / "teacher", dtype=self.dtype)).requires_grad_(False)
        self.student = Policy(load_model(student, dtype=torch.float32))
        self._pairs: list[TokenPair] = [
            (example.prompt_ids, example.response_ids) for example in read_examples(prepared / "train.jsonl")
        ]
        if not self._pairs or not all(response for _, response in self._pairs):
            raise DistillError(f"`{prepared / 'train.jsonl'}` holds prompts without responses to learn from")
        self._teacher_states = TeacherStates(prepared)
        lengths = [len(prompt) + len(response) for prompt, response in self._pairs]
        self._order = endless_order(lengths, batch_size=settings.batch_size, seed=settings.seed)
        self._curves = curves

    def warm(self, settings: WarmStart) -> None:
        """Run the first phase: forward KL on the teacher's texts.

        Raises:
            NonFiniteLossError: Training diverged.
        """
        off = Side(weights=Weights(kl=1.0), rows=self.settings.batch_size)
        phase = Phase(name="warm", steps=settings.steps, lr=settings.lr, off=off, on=None)
        self._run(phase, student_texts=None)

    def second(self, settings: Objective) -> None:
        """Run the second phase, under the name of its objective.

        Raises:
            NonFiniteLossError: Training diverged.
        """
        off, on = sides_of(settings, batch_size=self.settings.batch_size)
        phase = Phase(name=settings.kind, steps=settings.steps, lr=settings.lr, off=off, on=on)
        if isinstance(settings, Ammd):
            phase = replace(phase, discount=settings.discount)
        texts = None
        if on is not None and isinstance(settings, OnPolicyPhase):
            phase = replace(phase, temperature=settings.temperature)
            texts = self._student_texts(settings, on.rows)
        self._run(phase, student_texts=texts)

    def skip_texts(self, steps: int) -> None:
        """Go on in the texts as if `steps` steps of the first phase had been made."""
        next(islice(self._order, steps - 1, None))

    def save(self, folder: Path, *, dtype: torch.dtype = torch.bfloat16) -> None:
        """Write the student; in bfloat16 it takes half the bytes, and that is what it is served in anyway."""
        save_checkpoint(copy_in_dtype(self.student.model, dtype), self._tokenizer, folder)

    def _run(self, phase: Phase, *, student_texts: StudentTexts | None) -> None:
        rows = phase.off.rows if phase.off else self.settings.batch_size
        whole = rows == self.settings.batch_size
        run_phase(
            phase,
            student=self.student,
            teacher=self._teacher,
            pairs=self._pairs,
            teacher_states=self._teacher_states,
            order=self._order if whole else cut_batches(self._order, rows),
            student_texts=student_texts,
            settings=self.settings,
            curves=self._curves,
        )

    def _student_texts(self, settings: OnPolicyPhase, batch_size: int) -> StudentTexts:
        sampling = Sampling(
            max_new_tokens=max(len(response) for _, response in self._pairs),
            temperature=settings.temperature,
            end_token_ids=end_token_ids(self.student.model, self._tokenizer),
            batch_size=batch_size * settings.rollout_reuse_steps,
        )
        return StudentTexts(
            [prompt for prompt, _ in self._pairs],
            sampling=sampling,
            batch_size=batch_size,
            reuse_steps=settings.rollout_reuse_steps,
            dtype=self.dtype,
            seed=self.settings.seed + 1,  # not the order in which the teacher's texts come
        )
