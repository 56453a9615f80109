"""One student in training: the models and texts that its phases share.

A phase trains the student in place and goes on in the texts where the one before it stopped. Where the student is
pruned in stages (`staged.py`), it is cut in place between two of them.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ammd.errors import DistillError

from .adaptive import AdaptiveSupply
from .batches import cut_batches, endless_order
from .bridge import Bridge
from .checkpoint import end_token_ids, load_model, load_tokenizer, save_checkpoint
from .critic_settings import LearnedCritic
from .device import choose_device, matrix_dtype
from .fleet import Fleet
from .loop import chunk_tokens
from .lora import add_adapters
from .match import check_objective, read_match
from .mean_loss import mean_loss
from .minillm import SequenceScore
from .objective import Weights
from .phase import Phase
from .policy import Policy
from .prompts import read_examples
from .rollout import Sampling
from .settings import Ammd, DistiLLM, Game, MiniLLM, OnPolicyPhase
from .shards import like
from .sides import Side, sides_of
from .snapshots import Snapshots, State
from .staged import StagedCuts, share_steps
from .stored_as import roundings_of
from .student import measured_batch
from .student_texts import StudentTexts
from .supply import BothSides, TeacherTexts
from .teacher_states import TeacherStates
from .trainer import PhaseState, run_phase
from .two_tokenizers import TwoTokenizers, speller

if TYPE_CHECKING:
    from collections.abc import Callable

    from .batches import TokenPair
    from .settings import DistillSettings, Objective, WarmStart
    from .staged import Cuts
    from .supply import Supply


class Training:
    """Teacher, student, texts and the order in which they come."""

    def __init__(
        self,
        *,
        prepared: Path,
        student: Path,
        settings: DistillSettings,
        curves: Path,
        snapshots: Snapshots | None = None,
        cuts: Cuts | None = None,
    ) -> None:
        """Load everything.

        Args:
            prepared: What the prepare stage wrote.
            student: Checkpoint to start from.
            settings: Of the stage; the phases' own are passed to them.
            curves: Receives one line a step.
            snapshots: Keeps what a killed training goes on from, and has it if there was one.
            cuts: Of `student`, where it is to be cut again while it warms up.

        Raises:
            DataError: The prepared texts cannot be read.
            DistillError: A model cannot be used.
        """
        self.settings = settings
        self.device = choose_device(settings.device)
        self.fleet = Fleet(self.device)
        self.dtype = matrix_dtype(settings.precision, self.device)
        self._match = read_match(prepared)
        check_objective(settings.objective, self._match)
        self._tokenizer = load_tokenizer(prepared / ("student" if self._match else "teacher"))
        self._teacher = Policy(load_model(prepared / "teacher", dtype=self.dtype)).requires_grad_(False)
        self._teacher.to(self.device)
        self.student = Policy(load_model(student, dtype=torch.float32))
        if settings.lora and cuts and cuts.to_come:
            raise DistillError(
                "a student that is cut in stages cannot be trained through adapters: what a cut leaves has to learn",
                hint="leave `distill.lora` out, or set `prepare.student.stages = 1`",
            )
        if settings.divide_student and cuts and cuts.to_come:
            raise DistillError(
                "a student that is cut in stages cannot be divided among processes",
                hint="leave `distill.divide_student` out, or set `prepare.student.stages = 1`",
            )
        if settings.lora:
            add_adapters(self.student.model, settings.lora, seed=settings.seed)
        self.student.to(self.device)
        if settings.checkpoint_activations:
            self.student.checkpoint_activations()
        roundings_of(self.student.model, settings.quantize_as)  # refused before any work, if at all
        if settings.divide_student and self.fleet.size > 1:
            self.student.divide(self.fleet, dtype=self.dtype)
        examples = read_examples(prepared / "train.jsonl")
        self._pairs: list[TokenPair] = [example.pair for example in examples]
        self._teacher_pairs: list[TokenPair] = [example.teacher_pair for example in examples]
        if not self._pairs or not all(response for _, response in self._pairs):
            raise DistillError(f"`{prepared / 'train.jsonl'}` holds prompts without responses to learn from")
        self._teacher_states = TeacherStates(prepared)
        self._teacher_states.check(self._teacher, self._teacher_pairs)
        self._bridge = self._build_bridge(prepared) if self._match else None
        self._learned = len(self._pairs) - _kept_back(settings.objective)  # the rest only measures
        if self._learned < 1:
            raise DistillError(
                f"`distill.objective.validation_texts` keeps back all of the {len(self._pairs)} training texts"
            )
        lengths = [len(prompt) + len(response) for prompt, response in self._pairs[: self._learned]]
        self._order = endless_order(lengths, batch_size=settings.batch_size, seed=settings.seed)
        self._curves = curves
        self._snapshots = snapshots
        self.after_step: Callable[[], None] = lambda: None  # called before each phase and after each step
        self._start = snapshots.load() if snapshots else None
        self._phases = 0  # begun
        self._written = {curves.name: curves}  # by the stage so far, with what stands between phases
        self.cuts = StagedCuts(self.student.model, cuts)
        if snapshots and self._start:
            if self.fleet.is_first:
                snapshots.restore_file(curves.name, curves)
            # The weights that are put back later are those of a student that may have been cut by then.
            self.cuts.repeat(self._start.facts)

    @property
    def parameters(self) -> int:
        """How many numbers the student has that is saved; adapters are merged by then."""
        named = self.student.named_parameters()
        return sum(parameter.numel() for name, parameter in named if "lora_" not in name)

    def warm(self, settings: WarmStart) -> None:
        """Run the first phase, forward KL on the teacher's texts, in shares with a cut between them if any are to come.

        Where vocabularies are too different to be compared it is cross-entropy.

        Its weights are not rounded: it has a cut network to mend, whose loss is far above that of rounding, and what it
        leaves is the same start for every scheme.

        Raises:
            NonFiniteLossError: Training diverged.
            DistillError: There are fewer steps than shares.
        """
        has_to_spell = self._match is not None and bool(self._match.misfit)
        weights = Weights(cross_entropy=1.0) if has_to_spell else Weights(kl=1.0)
        off = Side(weights=weights, rows=self.settings.batch_size)
        shares = share_steps(settings.steps, self.cuts.to_come + 1)
        for index, steps in enumerate(shares):
            if index:
                self.cuts.make(index - 1, measured_batch(self._pairs).to(self.device), self.fleet)
            name = "warm" if len(shares) == 1 else f"warm {index + 1}"
            phase = Phase(name=name, steps=steps, lr=settings.lr, off=off, on=None)
            self._run(phase, BothSides(teacher_texts=self._teacher_texts(off.rows), student_texts=None))

    def second(self, settings: Objective) -> None:
        """Run the second phase, under the name of its objective.

        Raises:
            NonFiniteLossError: Training diverged.
            CollapseError: Student or critic degenerated.
            DistillError: The critic cannot start as the settings want.
        """
        off, on = sides_of(settings, batch_size=self.settings.batch_size)
        phase = Phase(name=settings.kind, steps=settings.steps, lr=settings.lr, off=off, on=on)
        phase = replace(phase, roundings=roundings_of(self.student.model, self.settings.quantize_as))
        if isinstance(settings, Game):
            phase = replace(phase, discount=settings.discount, estimator=settings.estimator)
        if isinstance(settings, Ammd) and isinstance(settings.critic, LearnedCritic):
            phase = replace(phase, critic=settings.critic)
        if isinstance(settings, OnPolicyPhase | DistiLLM):
            phase = replace(phase, temperature=settings.temperature)
        teacher_texts = self._teacher_texts(off.rows) if off else None
        student_texts = None
        if on and isinstance(settings, OnPolicyPhase):
            student_texts = self._student_texts(on.rows, settings.temperature, settings.rollout_reuse_steps)
        if on and isinstance(settings, MiniLLM):
            student_texts = self._student_texts(
                on.rows, 1.0, settings.rollout_reuse_steps, teacher_share=settings.teacher_share
            )
            score = SequenceScore(
                ratio_clip=settings.ratio_clip, length_normalised=settings.length_normalised
            )
            phase = replace(phase, sequence_score=score)
        if isinstance(settings, DistiLLM):
            supply: Supply = self._adaptive(settings, self._teacher_texts(self.settings.batch_size))
        else:
            supply = BothSides(teacher_texts=teacher_texts, student_texts=student_texts)
        self._run(phase, supply)

    def skip_texts(self, steps: int) -> None:
        """Go on in the texts as if `steps` steps of the first phase had been made."""
        next(islice(self._order, steps - 1, None))

    def save(self, folder: Path, *, dtype: torch.dtype = torch.bfloat16) -> None:
        """Write the student; in bfloat16 it takes half the bytes, and that is what it is served in anyway."""
        if not self.fleet.is_first and not self.student.is_divided:
            return
        copy = self.student.copy_in_dtype(dtype)  # all have a part in it
        if self.fleet.is_first:
            save_checkpoint(copy, self._tokenizer, folder)

    def save_between(self, folder: Path) -> None:
        """Write the student between two phases, or what a killed training had written there."""
        if self._snapshots and self._start and folder.name in self._start.facts["written"]:
            if self.fleet.is_first:
                self._snapshots.restore_file(folder.name, folder)
        else:
            self.save(folder)
        self._written[folder.name] = folder

    def save_last_snapshot(self, folder: Path) -> bool:
        """Write the student of the last snapshot; return whether there is one."""
        state = self._snapshots.load() if self._snapshots else None
        if state is None:
            return False
        kept = state.part("phase").part("loop").part("student").tensors
        with torch.no_grad():
            for name, parameter in self.student.named_parameters():
                parameter.copy_(like(kept[name], parameter))
        self.save(folder)
        return True

    def _run(self, phase: Phase, supply: Supply) -> None:
        self._phases += 1
        start = None
        if self._start:
            if self._start.facts["phases"] > self._phases:  # it had been finished
                supply.restore(State(facts={"taken": phase.steps}))
                return
            start = self._start.part("phase")
            self._start = None
        run_phase(
            phase,
            student=self.student,
            teacher=self._teacher,
            supply=supply,
            longest_tokens=max(
                len(prompt) + len(response) for prompt, response in (*self._pairs, *self._teacher_pairs)
            ),
            settings=self.settings,
            curves=self._curves,
            fleet=self.fleet,
            bridge=self._bridge,
            between_steps=self._keep,
            start=start,
        )

    def _keep(self, phase: PhaseState) -> None:
        """Tell of a step; take a snapshot where one is due, and before every phase but the first."""
        self.after_step()
        if self._snapshots is None:
            return
        is_due = self._snapshots.is_due or (phase.steps == 0 and self._phases > 1)
        if not self.fleet.of_first(is_due) or not (self.fleet.is_first or self.student.is_divided):
            return
        facts = {"phases": self._phases, "written": list(self._written), **self.cuts.facts()}
        state = State(facts=facts)
        state.put("phase", phase.state())
        if self.fleet.is_first:
            self._snapshots.save(state, keep=self._written)

    def _teacher_texts(self, rows: int) -> TeacherTexts:
        whole = rows == self.settings.batch_size
        order = self._order if whole else cut_batches(self._order, rows)
        return TeacherTexts(
            self._pairs,
            self._teacher_states,
            order,
            dtype=self.dtype,
            bridge=self._bridge,
            spelled=self._teacher_pairs,
        )

    def _student_texts(
        self, batch_size: int, temperature: float, reuse_steps: int, *, teacher_share: float | None = None
    ) -> StudentTexts:
        """Return the student's texts, or, with a share, those that the teacher has its share in."""
        sampling = Sampling(
            max_new_tokens=max(len(response) for _, response in self._pairs),
            temperature=temperature,
            end_token_ids=end_token_ids(self.student.model, self._tokenizer),
            batch_size=batch_size * reuse_steps,
        )
        return StudentTexts(
            [prompt for prompt, _ in self._pairs[: self._learned]],
            sampling=sampling,
            batch_size=batch_size,
            reuse_steps=reuse_steps,
            dtype=self.dtype,
            seed=self.settings.seed + 1,  # not the order in which the teacher's texts come
            fleet=self.fleet,
            guide=None if teacher_share is None else self._teacher.model,
            guide_share=teacher_share or 0.0,
        )

    def _build_bridge(self, prepared: Path) -> Bridge:
        teacher = load_tokenizer(prepared / "teacher")
        tokenizers = TwoTokenizers(
            speller(teacher, end_token_ids(self._teacher.model, teacher)),
            speller(self._tokenizer, end_token_ids(self.student.model, self._tokenizer)),
        )
        vocabulary = tokenizers.shared_vocabulary(
            teacher_rows=len(self._teacher.head), student_rows=len(self.student.head)
        )
        return Bridge(
            tokenizers,
            vocabulary.to(self.device),
            prompts={
                tuple(ours): theirs
                for (ours, _), (theirs, _) in zip(self._pairs, self._teacher_pairs, strict=True)
            },
            compares=self._match is not None and not self._match.misfit,
        )

    def _adaptive(self, settings: DistiLLM, texts: TeacherTexts) -> AdaptiveSupply:
        size = self.settings.batch_size
        kept_back = range(self._learned, len(self._pairs))
        batches = [
            texts.batch_of(kept_back[start : start + size]) for start in range(0, len(kept_back), size)
        ]
        off, _ = sides_of(settings, batch_size=size)
        weights = off.weights if off else Weights()

        def validate(student: Policy) -> float:
            with torch.no_grad():
                return mean_loss(
                    student,
                    self._teacher,
                    batches,
                    weights=weights,
                    chunk_tokens=chunk_tokens(
                        self.settings, vocabulary=len(student.head), device=self.device
                    ),
                    fleet=self.fleet,
                    bridge=self._bridge,
                )

        return AdaptiveSupply(
            settings,
            teacher_texts=texts,
            student_texts=self._student_texts(size, settings.temperature, 1),
            validate=validate,
            batch_size=size,
            seed=self.settings.seed,
        )


def _kept_back(settings: Objective) -> int:
    return settings.validation_texts if isinstance(settings, DistiLLM) else 0
