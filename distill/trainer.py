"""The training loop, on accelerate: one for every phase.

A phase is a number of optimizer steps with one set of weights. Each step takes a batch of the teacher's texts
(off-policy) and, where the phase asks for it, a batch of the student's own (on-policy); each side's loss is a mean
over its response tokens. The student's weights are float32, its matrix products bfloat16 where the CPU has that;
losses are float32 (`chunked.py`).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator

from ammd.errors import NonFiniteLossError
from ammd.machine import has_fast_bfloat16, release_freed_memory
from ammd.progress import progress

from .batches import Batch, TokenPair, build_batch
from .chunked import Score, States, Sums, matching_loss
from .policy import Policy
from .sides import Side
from .student_texts import StudentTexts
from .teacher_states import TeacherStates

if TYPE_CHECKING:
    from .settings import DistillSettings

# Up to this length the CPU's plain attention beats its fused one (108 tokens, bfloat16: a backward pass of 1.0 s
# instead of 1.5 s); beyond it, the [T, T] matrices it keeps cost too much memory.
_EAGER_TOKENS = 256
_RISE_SHARE = 0.05  # of the steps in which the learning rate rises
_FINAL_SHARE = 0.1  # of the highest learning rate at the last step
_CLEAR_STEPS = 8  # between two clearings of the heap; each costs about a second
_BASELINE_DECAY = 0.9  # of the running mean of future gaps


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A stretch of training with one objective."""

    name: str
    steps: int
    lr: float
    off: Side | None  # on the teacher's texts
    on: Side | None  # on the student's texts; None samples none
    discount: float = 0.0
    temperature: float = 1.0  # at which the student's texts are sampled


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLog:
    """What one step measured, before it changed the student. Gaps, KL and TV are means over response tokens."""

    phase: str
    step: int
    seconds: float  # since the phase began
    loss: float
    lr: float
    grad_norm: float
    tokens_per_s: float  # response tokens trained on a second, both sides, since the phase began
    kl_nats: float | None = None  # forward KL on the teacher's texts
    d_off: float | None = None  # moment gap on the teacher's texts
    tv_off: float | None = None
    d_on: float | None = None  # moment gap on the student's texts
    tv_on: float | None = None
    future_gap: float | None = None  # mean discounted future gap on the student's texts


def run_phase(
    phase: Phase,
    *,
    student: Policy,
    teacher: Policy,
    pairs: Sequence[TokenPair],
    teacher_states: TeacherStates,
    order: Iterator[list[int]],
    student_texts: StudentTexts | None,
    settings: DistillSettings,
    curves: Path,
) -> None:
    """Train `student` in place for one phase and append a line a step to `curves`.

    `teacher_states` are the teacher's at the responses of `pairs`. `order` yields the indices of each batch; phases
    share one, so that the second goes on with texts that the first has not seen instead of going over the same
    ones again.

    Raises:
        NonFiniteLossError: The loss or a gradient became infinite or not a number.
    """
    longest = max(len(prompt) + len(response) for prompt, response in pairs)
    for policy in (student, teacher):
        policy.model.set_attn_implementation("eager" if longest <= _EAGER_TOKENS else "sdpa")
    loop = _Loop(phase, student, teacher, settings)
    with (
        progress(f"distill {phase.name}", phase.steps) as report,
        curves.open("a", buffering=1, encoding="utf-8") as log,
    ):
        for step in range(1, phase.steps + 1):
            off = None
            if phase.off:
                chosen = next(order)
                states = teacher_states.rows(chosen, [len(pairs[index][1]) for index in chosen])
                off = build_batch([pairs[index] for index in chosen]), states.to(teacher.head.dtype)
            on = student_texts.next_batch(student.model) if student_texts and phase.on else None
            entry = loop.step(step, off, on)
            log.write(json.dumps({k: v for k, v in asdict(entry).items() if v is not None}) + "\n")
            report(step, _summary(entry))
            if step % _CLEAR_STEPS == 0:
                release_freed_memory()


class _Loop:
    """Optimizer, schedule and running numbers of one phase."""

    def __init__(self, phase: Phase, student: Policy, teacher: Policy, settings: DistillSettings) -> None:
        self._phase, self._teacher, self._settings = phase, teacher, settings
        precision = "bf16" if uses_bfloat16(settings) else "no"
        self._accelerator = Accelerator(cpu=True, mixed_precision=precision)
        optimizer = torch.optim.AdamW(
            student.parameters(),
            lr=phase.lr,
            betas=(0.9, 0.98),
            weight_decay=settings.weight_decay,
            fused=True,
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda done: learning_rate_share(done, phase.steps)
        )
        self._student, self._optimizer, self._schedule = self._accelerator.prepare(
            student, optimizer, schedule
        )
        self._baseline = 0.0
        self._tokens = 0
        self._started = time.monotonic()

    def step(self, number: int, off: tuple[Batch, torch.Tensor] | None, on: Batch | None) -> StepLog:
        """Take one optimizer step on the teacher's texts with its states, and on the student's texts."""
        phase = self._phase
        total = 0.0
        off_sums: Sums | None = None
        on_sums: Sums | None = None
        if off is not None and phase.off is not None:
            loss, off_sums = self._side(*off, phase.off, discount=0.0)
            total += float(loss.detach())
            self._accelerator.backward(loss)
        if on is not None and phase.on is not None:
            with torch.inference_mode():
                on_states = self._teacher(on)
            loss, on_sums = self._side(on, on_states, phase.on, discount=phase.discount)
            total += float(loss.detach())
            self._accelerator.backward(loss)
            started = self._baseline if number > 1 else on_sums.future_gap
            self._baseline = _BASELINE_DECAY * started + (1 - _BASELINE_DECAY) * on_sums.future_gap
        grad_norm = float(
            self._accelerator.clip_grad_norm_(self._student.parameters(), self._settings.max_grad_norm)
        )
        if not math.isfinite(total) or not math.isfinite(grad_norm):
            raise NonFiniteLossError(
                f"loss `{total}`, gradient norm `{grad_norm}` at step {number} of phase `{phase.name}`",
                hint="lower the learning rate of this phase",
                step=number,
            )
        rate = self._schedule.get_last_lr()[0]
        self._optimizer.step()
        self._schedule.step()
        self._optimizer.zero_grad()
        self._tokens += sum(sums.tokens for sums in (off_sums, on_sums) if sums)
        seconds = time.monotonic() - self._started
        return StepLog(
            phase=phase.name,
            step=number,
            seconds=round(seconds, 3),
            loss=total,
            lr=rate,
            grad_norm=grad_norm,
            tokens_per_s=round(self._tokens / seconds, 1),
            kl_nats=off_sums.kl_nats if off_sums else None,
            d_off=off_sums.gap if off_sums else None,
            tv_off=off_sums.total_variation if off_sums else None,
            d_on=on_sums.gap if on_sums else None,
            tv_on=on_sums.total_variation if on_sums else None,
            future_gap=on_sums.future_gap if on_sums and phase.discount else None,
        )

    def _side(
        self, batch: Batch, teacher_hiddens: torch.Tensor, side: Side, *, discount: float
    ) -> tuple[torch.Tensor, Sums]:
        with self._accelerator.autocast():
            hiddens = self._student(batch)
        policy: Policy = self._accelerator.unwrap_model(self._student)
        if uses_bfloat16(self._settings):
            # The final norm comes out in float32; the head's products need not be.
            hiddens = hiddens.bfloat16()
        states = States(
            teacher_hiddens=teacher_hiddens,
            teacher_head=self._teacher.head,
            targets=batch.targets,
            last_in_row=batch.last_in_row,
        )
        loss, sums = matching_loss(
            hiddens,
            policy.head,
            states=states,
            weights=side.weights,
            score=Score(discount=discount, baseline=self._baseline, temperature=self._phase.temperature),
            chunk_tokens=self._settings.chunk_tokens,
        )
        return loss * side.scale, sums


def uses_bfloat16(settings: DistillSettings) -> bool:
    """Tell whether matrix products are bfloat16 under these settings on this machine."""
    if settings.precision == "auto":
        return has_fast_bfloat16()
    return settings.precision == "bfloat16"


def learning_rate_share(done: int, steps: int) -> float:
    """Return the share of the highest learning rate after `done` of `steps`: a linear rise, then a cosine."""
    rise = max(1, round(_RISE_SHARE * steps))
    if done < rise:
        return (done + 1) / rise
    share = (done - rise) / max(1, steps - rise)
    return _FINAL_SHARE + (1 - _FINAL_SHARE) * 0.5 * (1 + math.cos(math.pi * share))


def _summary(entry: StepLog) -> str:
    named = {"KL": entry.kl_nats, "d_off": entry.d_off, "d_on": entry.d_on}
    values = "".join(f"{name} {value:.3f} " for name, value in named.items() if value is not None)
    return f"loss {entry.loss:.3f} {values}{entry.tokens_per_s:.0f} tokens/s"
