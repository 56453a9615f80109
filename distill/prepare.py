"""The prepare stage: teacher, first student, and the texts that both are trained and judged on.

teacher/        the teacher as a checkpoint folder
student/        the student before training
tuning.jsonl    where the teacher is fine-tuned first: one JSON object for each step (`StepLog`)
student_cuts.json   where it is pruned in stages: its layers, and the cuts to come (`staged.Cuts`)
train.jsonl     prompts with responses: the file's own, or the teacher's, sampled
teacher_states.npy, teacher_states_start.npy   the teacher's final hidden states at those responses
heldout.jsonl   held-out prompts with the teacher's greedy responses (and references where the file has any)
match.json      where the student keeps a tokenizer of its own: what both have in common (`match.Match`)

Where the vocabulary is trimmed, the teacher writes with all of it: that tells which tokens it uses. Then teacher,
texts and student go over to the kept ones, and the trimmed teacher answers the held-out prompts, which had no say in
what is kept. Its stored states stay true wherever a text keeps its tokens; where one is spelled in several, they are
made anew.

Where the student keeps its own tokenizer, texts are in its tokens, with the teacher's own beside them.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ammd.conversations import Conversation, encode_response, render_prompt
from ammd.encoder_decoder import is_encoder_decoder
from ammd.errors import DataError
from ammd.machine import check_free_disk

from .batches import TokenPair
from .checkpoint import copy_in_dtype, load_model, load_tokenizer
from .device import choose_device, describe_device, matrix_dtype
from .given_texts import ChosenTexts, choose_texts, read_texts
from .match import write_match
from .own_tokenizer import read_own_tokenizer
from .policy import Policy
from .prompts import Example, check_lengths, write_examples
from .settings import PrepareSettings
from .source import check_source, materialize
from .student import check_student, size_warnings, take_student, write_student
from .student_settings import ModelStudent
from .teacher_states import TeacherStatesWriter
from .teacher_texts import answer_greedily, keep_states, write_responses
from .trimming import TrimmedTokenizer, replace_checkpoint, trim_model, trim_tokenizer
from .tuning import tune
from .vocabulary import VocabularyPlan

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger("ammd.distill")


@dataclass(frozen=True, slots=True, kw_only=True)
class PrepareInputs:
    """The stage starts from its settings alone."""


def run(_inputs: PrepareInputs, settings: PrepareSettings, folder: Path) -> dict[str, Any]:
    """Write teacher, student and texts into `folder` and return what was counted.

    Raises:
        RecipeError: A model source is malformed or unknown, or the task is.
        DataError: A data file is missing, empty or malformed, or a prompt is too long.
        DistillError: A model cannot be used, the student cannot be made of it, or its vocabulary cannot be trimmed.
        NonFiniteLossError: The teacher's tuning diverged.
        CollapseError: The teacher degenerated while it was tuned.
        TokenizerMismatchError: Student and teacher do not share a tokenizer.
        ArtifactError: The disk has no room for the teacher's states.
    """
    device = choose_device(settings.device)
    check_source(settings.teacher)
    if isinstance(settings.student, ModelStudent):
        check_source(settings.student.source)
    given = read_texts(settings)
    origin = materialize(settings.teacher, folder / "teacher")
    full = load_tokenizer(folder / "teacher")
    taken = None
    if isinstance(settings.student, ModelStudent):
        taken = take_student(
            folder / "student",
            settings.student,
            teacher=folder / "teacher",
            tokenizer=full,
            is_trimmed=settings.vocabulary is not None,
        )
    teacher = load_model(folder / "teacher", dtype=torch.float32)
    check_student(teacher, settings.student)
    warnings = size_warnings(teacher, settings.student)
    context = getattr(teacher.config, "max_position_embeddings", None)
    chosen = choose_texts(*given, lambda item: render_prompt(full, item.messages), settings, context=context)
    train, heldout = chosen.train, chosen.heldout
    warnings += chosen.warnings
    for warning in warnings:
        log.warning("%s", warning)
    teacher, tuning = _tune(folder, teacher, full, chosen, settings, paths=(given[0].source, given[1].source))
    own = (
        read_own_tokenizer(
            folder / "student",
            taken.own_tokenizer,
            teacher=teacher,
            teacher_tokenizer=full,
            render=lambda tokenizer, model: (
                _render(tokenizer, train, model, settings, path=given[0].source),
                _render(tokenizer, heldout, model, settings, path=given[1].source),
            ),
        )
        if taken is not None and taken.own_tokenizer is not None
        else None
    )
    plan = None
    if settings.vocabulary is not None:
        plan = VocabularyPlan(settings.vocabulary, model=teacher, tokenizer=full)
    heldout_ids = _render(full, heldout, teacher, settings, path=given[1].source)
    pairs, trimmed, counts = _write_training_texts(
        folder, train, teacher, full, plan, settings, path=given[0].source, device=device
    )
    tokenizer = full
    if trimmed is not None:
        tokenizer = trimmed.tokenizer
        replace_checkpoint(folder / "teacher", teacher, tokenizer)
        # Without the chat template around them, whose tokens are always kept.
        texts = [message["content"] for item in heldout for message in item.messages]
        counts["vocabulary"]["heldout_respelled_share"] = trimmed.respelled_share(
            full.encode(text, add_special_tokens=False) for text in texts
        )
        heldout_ids = _render(tokenizer, heldout, teacher, settings, path=given[1].source)
    examples = _examples(tokenizer, train, pairs)
    teacher.to(device)  # not earlier: it was written with in another dtype
    answers = answer_greedily(teacher, tokenizer, heldout_ids, settings=settings)
    judged = _examples(tokenizer, heldout, list(zip(heldout_ids, answers, strict=True)))
    if own is not None:
        examples, judged = own.respelled(examples, own.train_ids), own.respelled(judged, own.heldout_ids)
        match = own.match(folder, examples, teacher)
        write_match(folder, match)
        counts["match"] = asdict(match) | {"misfit": match.misfit}
        if match.misfit:
            warnings.append(f"only objective `sft` fits this student: {match.misfit}")
            log.warning("%s", warnings[-1])
    write_examples(folder / "train.jsonl", examples)
    write_examples(folder / "heldout.jsonl", judged, references=[item.response for item in heldout])
    counts |= (
        chosen.left_out
        | tuning
        | {
            "train_prompts": len(examples),
            "train_response_tokens": sum(len(example.response_ids) for example in examples),
            "heldout_prompts": len(judged),
            "generated_tokens": counts["generated_tokens"] + sum(map(len, answers)),
        }
    )
    facts = write_student(folder, pairs, teacher, full, settings.student, trimmed=trimmed, taken=taken)
    return {
        **counts,
        "teacher": asdict(origin),
        "student": facts,
        "device": describe_device(device),
        "warnings": warnings,
    }


def _render(
    tokenizer: PreTrainedTokenizerBase,
    conversations: list[Conversation],
    model: PreTrainedModel,
    settings: PrepareSettings,
    *,
    path: str,
) -> list[tuple[int, ...]]:
    """Return the prompts' ids; each leaves room for a response, where positions are counted and not relative."""
    if not (tokenizer.chat_template or is_encoder_decoder(model)):
        raise DataError("the model has no chat template", hint="use an instruction-tuned model")
    prompt_ids = [_render_one(tokenizer, item, path=path) for item in conversations]
    longest = getattr(model.config, "max_position_embeddings", None)
    if longest is not None:
        room = longest - settings.response_tokens
        check_lengths(prompt_ids, conversations, path=Path(path), room=room)
    return prompt_ids


def _render_one(tokenizer: PreTrainedTokenizerBase, item: Conversation, *, path: str) -> tuple[int, ...]:
    try:
        return render_prompt(tokenizer, item.messages)
    except DataError as exc:
        raise DataError(f"`{path}` line {item.line}: {exc}", hint=exc.hint, line=item.line) from exc


def _tune(
    folder: Path,
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: ChosenTexts,
    settings: PrepareSettings,
    *,
    paths: tuple[str, str],
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """Return the teacher as it is written after its `tuning`, if the settings have any, and what it learnt."""
    if settings.tuning is None:
        return teacher, {}

    def pairs_of(conversations: list[Conversation], path: str) -> list[TokenPair]:
        given = [item for item in conversations if item.response is not None]
        prompt_ids = _render(tokenizer, given, teacher, settings, path=path)
        most = settings.response_tokens
        responses = [encode_response(tokenizer, item.response or "", max_tokens=most) for item in given]
        return list(zip(prompt_ids, responses, strict=True))

    pairs, heldout = map(pairs_of, (texts.train, texts.heldout), paths)
    facts = tune(teacher, settings.tuning, pairs, heldout, settings=settings, folder=folder)
    replace_checkpoint(folder / "teacher", teacher, tokenizer)
    return load_model(folder / "teacher", dtype=torch.float32), {"tuning": facts}


def _write_training_texts(
    folder: Path,
    train: list[Conversation],
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    plan: VocabularyPlan | None,
    settings: PrepareSettings,
    *,
    path: str,
    device: torch.device,
) -> tuple[list[TokenPair], TrimmedTokenizer | None, dict[str, Any]]:
    """Return prompts and responses, and write the states; with a plan, trim `teacher` and put them in its new ids."""
    prompt_ids = _render(tokenizer, train, teacher, settings, path=path)
    dtype = matrix_dtype("auto", device)
    policy = Policy(teacher if dtype == torch.float32 else copy_in_dtype(teacher, dtype)).to(device)
    width = policy.head.shape[1]
    check_free_disk(
        folder,
        # Twice where a text may be spelled in other tokens: its first states stay in the file, unread.
        need_bytes=(2 if plan else 1) * len(train) * settings.response_tokens * width * dtype.itemsize,
        purpose="keeping the teacher's states",
    )
    unanswered = [
        index for index, item in enumerate(train) if item.response is None or settings.responses == "teacher"
    ]
    counts: dict[str, Any] = {"teacher_written": len(unanswered)}
    with TeacherStatesWriter(folder, examples=len(train), width=width, dtype=dtype) as states:
        pairs = write_responses(
            policy, tokenizer, train, prompt_ids, unanswered, states=states, settings=settings
        )
        counts["generated_tokens"] = sum(len(pairs[index][1]) for index in unanswered)
        if plan is None:
            return pairs, None, counts
        trimmed, counts["vocabulary"] = _trim(plan, tokenizer, teacher, policy.model, pairs)
        prompt_ids = _render(trimmed.tokenizer, train, teacher, settings, path=path)
        new_pairs: list[TokenPair] = [
            (ids, trimmed.respell(response, max_tokens=settings.response_tokens))
            for ids, (_, response) in zip(prompt_ids, pairs, strict=True)
        ]
        changed = [index for index, pair in enumerate(pairs) if not trimmed.keeps([*pair[0], *pair[1]])]
        keep_states(policy, states, changed, new_pairs, batch_size=settings.batch_size)
    return new_pairs, trimmed, counts


def _trim(
    plan: VocabularyPlan,
    tokenizer: PreTrainedTokenizerBase,
    teacher: PreTrainedModel,
    copy: PreTrainedModel,
    pairs: Sequence[TokenPair],
) -> tuple[TrimmedTokenizer, dict[str, Any]]:
    """Trim the teacher and its copy in another dtype, if that is another model, in place."""
    kept = plan.choose(Counter(token_id for pair in pairs for ids in pair for token_id in ids))
    trimmed = trim_tokenizer(tokenizer, plan.bpe, kept.ids)
    before = teacher.num_parameters()
    trim_model(teacher, trimmed.new_ids)
    if copy is not teacher:
        trim_model(copy, trimmed.new_ids)
    return trimmed, {
        "tokens_before": len(plan.bpe.ids),
        "tokens": len(kept.ids),
        "kept_for": kept.kept_for,
        "parameters_saved": before - teacher.num_parameters(),
        "counted_tokens": kept.counted_tokens,
        "respelled_share": kept.respelled_tokens / kept.counted_tokens,
    }


def _examples(
    tokenizer: PreTrainedTokenizerBase, conversations: list[Conversation], pairs: Sequence[TokenPair]
) -> list[Example]:
    return [
        Example(
            prompt=conversation.prompt,
            response=tokenizer.decode(list(response_ids), skip_special_tokens=True),
            prompt_ids=tuple(prompt_ids),
            response_ids=tuple(response_ids),
        )
        for conversation, (prompt_ids, response_ids) in zip(conversations, pairs, strict=True)
    ]
