"""The distill stage: from the prepared student to the trained one.

warm/           the student after the warm start
student/        the student after AMMD
curves.jsonl    one JSON object for each step of both phases (`StepLog`)
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ammd.errors import DistillError

from .batches import endless_order
from .checkpoint import end_token_ids, load_model, load_tokenizer, save_checkpoint
from .objective import Weights
from .policy import Policy
from .prompts import read_examples
from .rollout import Sampling
from .settings import Ammd, DistillSettings, WarmStart
from .student_texts import StudentTexts
from .trainer import Phase, run_phase, uses_bfloat16

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from .batches import TokenPair


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillInputs:
    """What the prepare stage wrote."""

    prepared: Path


def run(inputs: DistillInputs, settings: DistillSettings, folder: Path) -> dict[str, Any]:
    """Train the prepared student in both phases; write both checkpoints and the curves into `folder`.

    Raises:
        DataError: The prepared texts cannot be read.
        DistillError: A model cannot be used.
        NonFiniteLossError: Training diverged.
    """
    dtype = torch.bfloat16 if uses_bfloat16(settings) else torch.float32
    tokenizer = load_tokenizer(inputs.prepared / "teacher")
    teacher = Policy(load_model(inputs.prepared / "teacher", dtype=dtype)).requires_grad_(False)
    student = Policy(load_model(inputs.prepared / "student", dtype=torch.float32))
    pairs: list[TokenPair] = [
        (example.prompt_ids, example.response_ids)
        for example in read_examples(inputs.prepared / "train.jsonl")
        if example.response_ids
    ]
    if not pairs:
        raise DistillError(f"`{inputs.prepared / 'train.jsonl'}` holds no responses to learn from")
    lengths = [len(prompt) + len(response) for prompt, response in pairs]
    order = endless_order(lengths, batch_size=settings.batch_size, seed=settings.seed)
    train = partial(
        run_phase,
        student=student,
        teacher=teacher,
        pairs=pairs,
        order=order,
        settings=settings,
        curves=folder / "curves.jsonl",
    )

    train(warm_phase(settings.warm), student_texts=None)
    _save(student, tokenizer, folder / "warm")

    texts = _student_texts(student, tokenizer, pairs, settings, dtype)
    train(ammd_phase(settings.objective), student_texts=texts)
    _save(student, tokenizer, folder / "student")
    return {
        "precision": "bfloat16" if dtype == torch.bfloat16 else "float32",
        "parameters": sum(parameter.numel() for parameter in student.parameters()),
        "warm_steps": settings.warm.steps,
        "ammd_steps": settings.objective.steps,
    }


def warm_phase(settings: WarmStart) -> Phase:
    """Return the first phase: forward KL on the teacher's texts."""
    return Phase(name="warm", steps=settings.steps, lr=settings.lr, off=Weights(kl=1.0), on=None)


def ammd_phase(settings: Ammd) -> Phase:
    """Return the second phase: the game on both sides, with some forward KL kept in on the teacher's."""
    off = Weights(kl=settings.kd_weight, game=settings.off_weight, critic_penalty=settings.critic_penalty)
    on = Weights(game=settings.on_weight, critic_penalty=settings.critic_penalty)
    return Phase(
        name="ammd",
        steps=settings.steps,
        lr=settings.lr,
        off=off,
        on=on if settings.on_weight else None,
        discount=settings.discount,
    )


def _student_texts(
    student: Policy,
    tokenizer: PreTrainedTokenizerBase,
    pairs: list[TokenPair],
    settings: DistillSettings,
    dtype: torch.dtype,
) -> StudentTexts:
    round_size = settings.batch_size * settings.objective.rollout_reuse_steps
    sampling = Sampling(
        max_new_tokens=max(len(response) for _, response in pairs),
        temperature=settings.objective.temperature,
        end_token_ids=end_token_ids(student.model, tokenizer),
        batch_size=round_size,
    )
    return StudentTexts(
        [prompt for prompt, _ in pairs],
        sampling=sampling,
        batch_size=settings.batch_size,
        reuse_steps=settings.objective.rollout_reuse_steps,
        dtype=dtype,
        seed=settings.seed + 1,  # not the order in which the teacher's texts come
    )


def _save(student: Policy, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the student in bfloat16: half the bytes, and what it is served in anyway."""
    save_checkpoint(copy.deepcopy(student.model).to(torch.bfloat16), tokenizer, folder)
