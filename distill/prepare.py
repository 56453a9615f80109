"""The prepare stage: teacher, first student, and the texts that both are trained and judged on.

teacher/        the teacher as a checkpoint folder
student/        the student before training
student_cuts.json   where it is pruned in stages: its layers, and the cuts to come (`staged.Cuts`)
train.jsonl     prompts with responses: the file's own, or the teacher's, sampled
teacher_states.npy, teacher_states_start.npy   the teacher's final hidden states at those responses
heldout.jsonl   held-out prompts with the teacher's greedy responses (and references where the file has any)
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ammd.errors import DataError
from ammd.machine import check_free_disk, has_fast_bfloat16
from ammd.progress import progress

from .batches import TokenPair, build_batch
from .checkpoint import copy_in_dtype, end_token_ids, load_model, load_tokenizer
from .policy import Policy
from .prompts import (
    Conversation,
    Example,
    check_lengths,
    encode_response,
    read_conversations,
    render_prompt,
    write_examples,
)
from .rollout import Sampling, sample_responses
from .settings import ModelStudent, PrepareSettings
from .source import check_source, materialize
from .student import check_student, size_warnings, write_student
from .teacher_states import TeacherStatesWriter

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger("ammd.distill")


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareInputs:
    """The stage starts from its settings alone."""


def run(_inputs: PrepareInputs, settings: PrepareSettings, folder: Path) -> dict[str, Any]:
    """Write teacher, student and texts into `folder` and return what was counted.

    Raises:
        RecipeError: A model source is malformed or unknown.
        DataError: A data file is missing, empty or malformed, or a prompt is too long.
        DistillError: A model cannot be used, or the student cannot be made of it.
        TokenizerMismatchError: Student and teacher do not share a tokenizer.
        ArtifactError: The disk has no room for the teacher's states.
    """
    check_source(settings.teacher)
    if isinstance(settings.student, ModelStudent):
        check_source(settings.student.source)
    train = _choose(read_conversations(Path(settings.prompts)), settings)
    heldout = read_conversations(Path(settings.heldout))[: settings.max_heldout]
    if Path(settings.prompts).samefile(settings.heldout):
        raise DataError(
            f"`prepare.prompts` and `prepare.heldout` are the same file `{settings.heldout}`",
            hint="what a student was trained on cannot judge it: split the file",
        )
    materialize(settings.teacher, folder / "teacher")
    tokenizer = load_tokenizer(folder / "teacher")
    teacher = load_model(folder / "teacher", dtype=torch.float32)
    check_student(teacher, settings.student)
    warnings = size_warnings(teacher, settings.student)
    for warning in warnings:
        log.warning("%s", warning)
    examples, counts = _write_texts(folder, train, heldout, teacher, tokenizer, settings)
    pairs = [(example.prompt_ids, example.response_ids) for example in examples]
    facts = write_student(folder, pairs, teacher, tokenizer, settings.student)
    return {**counts, "student": facts, "warnings": warnings}


def _choose(conversations: list[Conversation], settings: PrepareSettings) -> list[Conversation]:
    if settings.max_prompts is None or settings.max_prompts >= len(conversations):
        return conversations
    generator = torch.Generator().manual_seed(settings.seed)
    order = torch.randperm(len(conversations), generator=generator)[: settings.max_prompts]
    return [conversations[index] for index in order.tolist()]


def _write_texts(
    folder: Path,
    train: list[Conversation],
    heldout: list[Conversation],
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    settings: PrepareSettings,
) -> tuple[list[Example], dict[str, int]]:
    dtype = torch.bfloat16 if has_fast_bfloat16() else torch.float32
    policy = Policy(teacher if dtype == torch.float32 else copy_in_dtype(teacher, dtype))
    room = policy.model.config.max_position_embeddings - settings.response_tokens
    asked = {Path(settings.prompts): train, Path(settings.heldout): heldout}
    prompt_ids = {}
    for path, conversations in asked.items():
        prompt_ids[path] = [render_prompt(tokenizer, item.messages) for item in conversations]
        check_lengths(prompt_ids[path], conversations, path=path, room=room)
    width = policy.head.shape[1]
    check_free_disk(
        folder,
        need_bytes=len(train) * settings.response_tokens * width * dtype.itemsize,
        purpose="keeping the teacher's states",
    )
    ends = end_token_ids(policy.model, tokenizer)

    def answer(
        model: PreTrainedModel,
        ids: list[tuple[int, ...]],
        temperature: float,
        label: str,
        on_states: Callable[[int, torch.Tensor], None] | None = None,
    ) -> list[list[int]]:
        sampling = Sampling(
            max_new_tokens=settings.response_tokens,
            temperature=temperature,
            end_token_ids=ends,
            batch_size=settings.batch_size,
        )
        generator = torch.Generator().manual_seed(settings.seed)
        with progress(label, len(ids)) as report:
            return sample_responses(
                model,
                ids,
                sampling=sampling,
                randomness=generator,
                on_tokens=lambda done, tokens: report(done, f"{tokens} tokens"),
                on_states=on_states,
            )

    train_ids = prompt_ids[Path(settings.prompts)]
    unanswered = [
        index for index, item in enumerate(train) if item.response is None or settings.responses == "teacher"
    ]
    with TeacherStatesWriter(folder, examples=len(train), width=width, dtype=dtype) as states:
        sampled = answer(
            policy.model,
            [train_ids[index] for index in unanswered],
            settings.temperature,
            "teacher writes",
            on_states=lambda place, rows: states.append(unanswered[place], rows),
        )
        responses: dict[int, Sequence[int]] = dict(zip(unanswered, sampled, strict=True))
        given = [index for index in range(len(train)) if index not in responses]
        for index in given:
            responses[index] = encode_response(
                tokenizer, train[index].response or "", max_tokens=settings.response_tokens
            )
        for start in range(0, len(given), settings.batch_size):
            indices = given[start : start + settings.batch_size]
            _keep_states(policy, states, indices, [(train_ids[i], responses[i]) for i in indices])
    examples = [
        _example(tokenizer, item, ids, responses[index])
        for index, (item, ids) in enumerate(zip(train, train_ids, strict=True))
    ]
    heldout_ids = prompt_ids[Path(settings.heldout)]
    # What others are judged by is exact: in bfloat16 the likeliest of two close tokens is a matter of rounding.
    greedy = answer(teacher, heldout_ids, 0.0, "teacher answers held-out prompts")
    judged = [
        _example(tokenizer, item, ids, response)
        for item, ids, response in zip(heldout, heldout_ids, greedy, strict=True)
    ]
    write_examples(folder / "train.jsonl", examples)
    write_examples(folder / "heldout.jsonl", judged, references=[item.response for item in heldout])
    return examples, {
        "train_prompts": len(examples),
        "train_response_tokens": sum(len(example.response_ids) for example in examples),
        "teacher_written": len(unanswered),
        "heldout_prompts": len(judged),
    }


@torch.inference_mode()
def _keep_states(
    policy: Policy, states: TeacherStatesWriter, indices: Sequence[int], pairs: Sequence[TokenPair]
) -> None:
    """Append the teacher's states at responses that it did not write itself."""
    rows = policy(build_batch(pairs)).split([len(response) for _, response in pairs])
    for index, piece in zip(indices, rows, strict=True):
        states.append(index, piece)


def _example(
    tokenizer: PreTrainedTokenizerBase,
    conversation: Conversation,
    prompt_ids: tuple[int, ...],
    response_ids: Sequence[int],
) -> Example:
    return Example(
        prompt=conversation.prompt,
        response=tokenizer.decode(list(response_ids), skip_special_tokens=True),
        prompt_ids=prompt_ids,
        response_ids=tuple(response_ids),
    )
