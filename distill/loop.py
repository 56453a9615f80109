"""The training loop's step, on accelerate: both sides' losses, the gradient, the critics and the optimizer.

Each step takes a batch of the teacher's texts (off-policy) and, where the phase asks for it, a batch of the student's
own (on-policy); each side's loss is a mean over its response tokens. The student's weights are float32, its matrix
products bfloat16 where the device has that; losses are float32 (`chunked.py`).
"""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs

from ammd.errors import NonFiniteLossError

from .adversary import Adversary
from .bridge import Bridge, TeacherView
from .chunked import States, Sums, matching_loss
from .critics import Potential, Views
from .device import matrix_dtype, memory_bytes
from .fleet import Fleet
from .phase import Phase
from .policy import Policy
from .rounded_weights import RoundedWeights
from .score import Estimator, Score
from .shards import for_first, like, whole
from .sides import Side
from .snapshots import State, optimizer_state, restore_optimizer
from .step_log import StepLog, side_fields, text_fields

if TYPE_CHECKING:
    from .batches import Batch
    from .settings import DistillSettings
    from .supply import TeacherBatch

_RISE_SHARE = 0.05  # of the steps in which the learning rate rises
_FINAL_SHARE = 0.1  # of the highest learning rate at the last step
# Of the device's memory for a chunk's logits: the student's, the teacher's and a learned critic's, 2 bytes each. Not
# of what is free at the moment: the same machine should choose the same chunks, whose sums are rounded alike.
_CHUNK_MEMORY_SHARE, _CHUNK_BYTES = 1 / 64, 6
_CHUNK_STEP, _CHUNK_MOST = 64, 1024  # beyond it nothing gets faster
_BASELINE_DECAY = 0.9  # of the running mean of future gaps


class Loop:
    """Optimizer, schedule and running numbers of one phase."""

    def __init__(
        self,
        phase: Phase,
        student: Policy,
        teacher: Policy,
        settings: DistillSettings,
        fleet: Fleet,
        bridge: Bridge | None = None,
    ) -> None:
        self._phase, self._teacher, self._settings, self._fleet = phase, teacher, settings, fleet
        self._bridge = bridge
        self.rounded = RoundedWeights(phase.roundings)
        self._device = student.device
        self._dtype = matrix_dtype(settings.precision, self._device)
        vocabulary = max(len(student.head), len(teacher.head))
        self._chunk_tokens = chunk_tokens(settings, vocabulary=vocabulary, device=self._device)
        # The only buffers are the rotary frequencies, the same everywhere.
        parallel = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
        self._accelerator = Accelerator(
            cpu=self._device.type == "cpu",
            mixed_precision="bf16" if self._dtype == torch.bfloat16 else "no",
            kwargs_handlers=[parallel],
            step_scheduler_with_optimizer=False,  # it would take a step of the schedule for each process
        )
        optimizer = torch.optim.AdamW(
            [parameter for parameter in student.parameters() if parameter.requires_grad],
            lr=phase.lr,
            betas=(0.9, 0.98),
            weight_decay=settings.weight_decay,
            fused=True,
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda done: learning_rate_share(done, phase.steps)
        )
        self._optimizer, self._schedule = self._accelerator.prepare(optimizer, schedule)
        # A divided one sends its gradients itself.
        self._student = student if student.is_divided else self._accelerator.prepare(student)
        self._adversaries: dict[str, Adversary] = {}  # learned critics by side, made at the first batch
        self._kept_adversaries: dict[str, State] = {}  # of a snapshot, until then
        # Its draws are for rows of this process alone.
        self._generator = torch.Generator(self._device).manual_seed(settings.seed + (fleet.rank << 32))
        self._baseline: float | None = None  # running mean of what a token answers for
        self._tokens = 0
        self._started = time.monotonic()

    def step(self, number: int, off: TeacherBatch | None, on: Batch | None) -> StepLog:
        """Take one optimizer step on the teacher's texts with its states, and on the student's texts."""
        phase = self._phase
        total = 0.0
        measured: dict[str, Any] = {}
        tokens = 0
        shares: list[float] = []
        if off is not None and phase.off is not None:
            score = Score(estimator=phase.estimator, own_texts=False, generator=self._generator)
            is_last = on is None or phase.on is None
            loss, sums = self._side("off", off.batch, off.view, phase.off, score, is_last=is_last)
            total += loss
            tokens += sums.tokens
            shares.append(sums.critic_share)
            measured |= self._fields("off", sums) | text_fields("off", off.batch)
            measured["kl_nats"] = sums.of_compared(sums.kl_nats)
        if on is not None and phase.on is not None:
            own = Score(
                estimator=phase.estimator,
                discount=phase.discount,
                baseline=self._baseline or 0.0,
                temperature=phase.temperature,
            )
            loss, sums = self._side("on", on, None, phase.on, phase.sequence_score or own, is_last=True)
            total += loss
            tokens += sums.tokens
            shares.append(sums.critic_share)
            measured |= self._fields("on", sums) | text_fields("on", on)
            if phase.discount:
                measured["future_gap"] = sums.future_gap
            before = sums.answered_gap if self._baseline is None else self._baseline
            self._baseline = _BASELINE_DECAY * before + (1 - _BASELINE_DECAY) * sums.answered_gap
        norm = self._accelerator.clip_grad_norm_(self._student.parameters(), self._settings.max_grad_norm)
        grad_norm = float(whole(norm))
        if not math.isfinite(total) or not math.isfinite(grad_norm):
            raise NonFiniteLossError(
                f"loss `{total}`, gradient norm `{grad_norm}` at step {number} of phase `{phase.name}`",
                hint="lower the learning rate of this phase",
                step=number,
            )
        rate = self._schedule.get_last_lr()[0]
        if phase.critic is not None:
            measured["stood_still"] = min(shares) < phase.critic.min_share
        if not measured.get("stood_still"):
            with self.rounded.lifted():
                self._optimizer.step()
            self._schedule.step()
        self._optimizer.zero_grad()
        self._tokens += tokens
        seconds = time.monotonic() - self._started
        return StepLog(
            phase=phase.name,
            step=number,
            seconds=round(seconds, 3),
            loss=total,
            lr=rate,
            grad_norm=grad_norm,
            tokens_per_s=round(self._tokens / seconds, 1),
            trained_tokens=tokens,
            **measured,
        )

    def state(self) -> State:
        """Return student, optimizer, schedule, critics and running numbers."""
        policy: Policy = self._accelerator.unwrap_model(self._student)
        state = State(
            tensors={"generator": self._generator.get_state()},
            facts={
                "schedule": self._schedule.state_dict(),
                "baseline": self._baseline,
                "tokens": self._tokens,
                "seconds": time.monotonic() - self._started,
                "adversaries": list(self._adversaries),
            },
        )
        with self.rounded.lifted():  # the tensors of this moment; the parameters are given others after it
            student = {name: for_first(p.detach()) for name, p in policy.named_parameters()}
        state.put("student", State(tensors=student))
        state.put("optimizer", optimizer_state(self._optimizer))
        for name, adversary in self._adversaries.items():
            state.put(name, adversary.state())
        return state

    def restore(self, state: State) -> None:
        """Take over what `state` returned; critics are restored when their first batch makes them."""
        policy: Policy = self._accelerator.unwrap_model(self._student)
        kept = state.part("student").tensors
        with torch.no_grad():
            for name, parameter in policy.named_parameters():
                parameter.copy_(like(kept[name], parameter))
        restore_optimizer(self._optimizer, state.part("optimizer"))
        self._schedule.load_state_dict(state.facts["schedule"])
        for group, rate in zip(
            self._optimizer.param_groups, state.facts["schedule"]["_last_lr"], strict=True
        ):
            group["lr"] = rate
        self._generator.set_state(state.tensors["generator"])
        self._baseline, self._tokens = state.facts["baseline"], state.facts["tokens"]
        self._started = time.monotonic() - state.facts["seconds"]
        self._kept_adversaries = {name: state.part(name) for name in state.facts["adversaries"]}

    def _fields(self, side: str, sums: Sums) -> dict[str, Any]:
        """Return what a line says of one side."""
        fields = side_fields(side, sums, self._adversaries.get(side))
        return fields if self._bridge is None else fields | {f"compared_{side}": sums.compared_share}

    def _side(
        self,
        name: str,
        batch: Batch,
        kept: TeacherView | None,
        side: Side,
        score: Estimator,
        *,
        is_last: bool,
    ) -> tuple[float, Sums]:
        """Add one side's gradient to the student's, piece by piece; return its loss and what was measured.

        `kept` are the teacher's states on this batch; None lets it read the texts now. Gradients are sent between
        processes once a step, behind the last piece of the last side.
        """
        policy: Policy = self._accelerator.unwrap_model(self._student)
        self._fleet.check_rows(len(batch.token_ids), of=f"the {name}-policy side")
        if policy.is_divided and self._settings.micro_batch_size is not None:
            self._fleet.check_even(len(batch.token_ids), of=f"the {name}-policy side")
        part, part_place = batch.rows(self._fleet.share(len(batch.token_ids)))
        part = part.to(self._device)
        if kept is not None:
            kept = kept[part_place].to(self._device)
        sums = Sums(tokens=int(batch.response_mask.sum()))  # of all processes
        total = 0.0
        pieces = list(part.pieces(self._settings.micro_batch_size))
        for number, (piece, place) in enumerate(pieces, 1):
            view = self._read_by_teacher(piece) if kept is None else kept[place]
            is_sent = is_last and number == len(pieces)
            # Several sums of a divided student's parts take less memory than one of the whole.
            is_sent = is_sent or policy.is_divided
            with nullcontext() if is_sent else self._accelerator.no_sync(self._student):
                with self._accelerator.autocast():
                    hiddens = self._student(piece)
                # The final norm comes out in float32; the head's products need not be.
                hiddens = hiddens.to(self._dtype)
                states = States(
                    teacher_hiddens=view.hiddens,
                    teacher_head=self._teacher.head,
                    targets=piece.targets,
                    last_in_row=piece.last_in_row,
                    drawn_logprobs=piece.drawn_logprobs,
                    comparison=self._bridge.comparison(view, spells=name == "off") if self._bridge else None,
                )
                loss, _ = matching_loss(
                    hiddens,
                    policy.head,
                    states=states,
                    weights=side.weights,
                    score=score,
                    chunk_tokens=self._chunk_tokens,
                    critic=self._ascended(name, hiddens, policy.head, states, side, ascends=number == 1),
                    sums=sums,
                )
                # The processes' gradients are averaged; their sum is wanted.
                self._accelerator.backward(loss * (side.scale * self._fleet.size))
            total += float(loss.detach()) * side.scale
        total, *means = self._fleet.sums([total, *sums.measured()])
        sums.replace(means)
        return total, sums

    @torch.inference_mode()
    def _read_by_teacher(self, batch: Batch) -> TeacherView:
        if self._bridge is not None:
            return self._bridge.read(self._teacher, batch)
        return TeacherView(hiddens=self._teacher(batch))

    def _ascended(
        self,
        name: str,
        hiddens: torch.Tensor,
        head: torch.Tensor,
        states: States,
        side: Side,
        *,
        ascends: bool,
    ) -> Potential | None:
        """Return a side's learned critic at these states, where it may ascend on them before."""
        if self._phase.critic is None:
            return None
        views = Views(
            student_hiddens=hiddens.detach(),
            student_head=head.detach(),
            teacher_hiddens=states.teacher_hiddens,
            teacher_head=states.teacher_head,
            vocabulary=self._bridge.vocabulary if self._bridge else None,
        )
        if name not in self._adversaries:
            self._adversaries[name] = Adversary(
                self._phase.critic, views, seed=self._settings.seed, fleet=self._fleet
            )
            if name in self._kept_adversaries:
                self._adversaries[name].restore(self._kept_adversaries.pop(name))
        seen = views if states.comparison is None else views.rows(states.comparison.aligned.nonzero()[:, 0])
        # Texts of a token each may leave nothing to see.
        if ascends and (states.comparison is None or self._fleet.sums([float(not len(seen))]) == [0.0]):
            self._adversaries[name].ascend(seen, side.weights)
        return self._adversaries[name].potential(views)


def chunk_tokens(settings: DistillSettings, *, vocabulary: int, device: torch.device) -> int:
    """Return how many response tokens have logits at once under these settings on this device."""
    if isinstance(settings.chunk_tokens, int):
        return settings.chunk_tokens
    room = int(memory_bytes(device) * _CHUNK_MEMORY_SHARE) // (vocabulary * _CHUNK_BYTES)
    return max(_CHUNK_STEP, min(_CHUNK_MOST, room // _CHUNK_STEP * _CHUNK_STEP))


def learning_rate_share(done: int, steps: int) -> float:
    """Return the share of the highest learning rate after `done` of `steps`: a linear rise, then a cosine."""
    rise = max(1, round(_RISE_SHARE * steps))
    if done < rise:
        return (done + 1) / rise
    share = (done - rise) / max(1, steps - rise)
    return _FINAL_SHARE + (1 - _FINAL_SHARE) * 0.5 * (1 + math.cos(math.pi * share))
