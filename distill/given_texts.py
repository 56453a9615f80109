"""The texts that a recipe gives to the prepare stage: from two files, or from the splits of a task.

Of a file, a prompt that leaves no room for a response is an error: whoever wrote the file can shorten it. Of a task,
whose data are as they are, it is left out and counted, and so is any that is longer than `max_prompt_tokens`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch

from ammd.conversations import Conversation, read_conversations
from ammd.errors import DataError
from ammd.task import Task, load_task
from ammd.task_data import read_task_rows, task_files

from .settings import PrepareSettings

Render = Callable[[Conversation], Sequence[int]]  # a prompt's token ids


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenTexts:
    """Conversations from one place."""

    name: str  # `training` or `held-out`
    source: str  # the file, or what a hub calls it
    conversations: list[Conversation]

    def keep(
        self, render: Render, *, longest: int | None, limit: int | None, order: Iterable[int]
    ) -> tuple[list[Conversation], int]:
        """Return up to `limit` conversations in `order`, and how many before the last were longer and left out.

        Raises:
            DataError: All are longer.
        """
        left_out = 0
        wanted = (self.conversations[index] for index in order)
        if longest is None:
            return list(islice(wanted, limit)), left_out
        kept: list[Conversation] = []
        for conversation in wanted:
            if len(kept) == limit:
                break
            if len(render(conversation)) <= longest:
                kept.append(conversation)
            else:
                left_out += 1
        if not kept:
            raise DataError(
                f"each {self.name} prompt of `{self.source}` has more than {longest} tokens",
                hint="raise `prepare.max_prompt_tokens`, or take a model with a longer context",
            )
        return kept, left_out


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenTexts:
    """The conversations that are used, and how many were too long."""

    train: list[Conversation]
    heldout: list[Conversation]
    left_out: dict[str, int]  # of training and held-out ones, by the names that results have for them
    warnings: list[str]


def read_texts(settings: PrepareSettings) -> tuple[GivenTexts, GivenTexts]:
    """Return what is trained on and what is held out.

    Raises:
        RecipeError: The task is none, or has nothing to train on or nothing to hold out.
        DataError: A file is missing, empty or malformed, the held-out one decides what is learnt or kept, or there is
            no response to tune the teacher on.
    """
    if settings.task is not None:
        train, heldout, files = _from_task(load_task(settings.task), settings)
    else:
        named = Path(settings.prompts or ""), Path(settings.heldout or "")
        train, heldout = (
            GivenTexts(name=name, source=str(path), conversations=read_conversations(path))
            for name, path in zip(("training", "held-out"), named, strict=True)
        )
        if named[0].samefile(named[1]):
            raise DataError(
                f"`prepare.prompts` and `prepare.heldout` are the same file `{named[1]}`",
                hint="what a student was trained on cannot judge it: split the file",
            )
        files = named[1:]
    for path in settings.vocabulary.texts if settings.vocabulary else ():
        if any(Path(path).exists() and Path(path).samefile(file) for file in files):
            raise DataError(
                f"`prepare.vocabulary.texts` names the held-out file `{path}`",
                hint="a vocabulary that was fitted to it would look better on it than on other text",
            )
    _check_tuning(train.conversations, settings, source=train.source)
    return train, heldout


def choose_texts(
    train: GivenTexts, heldout: GivenTexts, render: Render, settings: PrepareSettings, *, context: int | None
) -> ChosenTexts:
    """Return the training and held-out conversations that are used, without those that are too long.

    Args:
        train: To draw from by the seed.
        heldout: To take from the front.
        render: Gives a prompt's token ids.
        settings: Say how many, and how long a prompt may be.
        context: Tokens that the teacher reads at once, prompt and response; None where there is no limit.

    Raises:
        DataError: No prompt is short enough, or none that is used has a response to tune the teacher on.
    """
    longest = settings.max_prompt_tokens
    if context is not None and (settings.task is not None or longest is not None):
        room = context - settings.response_tokens
        longest = min(room, longest or room)
    count = len(train.conversations)
    order: Iterable[int] = range(count)
    if settings.max_prompts is not None and settings.max_prompts < count:
        order = torch.randperm(count, generator=torch.Generator().manual_seed(settings.seed)).tolist()
    kept_train, train_longer = train.keep(render, longest=longest, limit=settings.max_prompts, order=order)
    kept_heldout, heldout_longer = heldout.keep(
        render, longest=longest, limit=settings.max_heldout, order=range(len(heldout.conversations))
    )
    _check_tuning(kept_train, settings, source=train.source)
    warnings = [
        f"{longer} of {len(kept) + longer} {texts.name} prompts have more than {longest} tokens and are left out"
        for texts, kept, longer in (
            (train, kept_train, train_longer),
            (heldout, kept_heldout, heldout_longer),
        )
        if longer
    ]
    left_out = {"train_left_out": train_longer, "heldout_left_out": heldout_longer}
    return ChosenTexts(train=kept_train, heldout=kept_heldout, left_out=left_out, warnings=warnings)


def _check_tuning(conversations: Sequence[Conversation], settings: PrepareSettings, *, source: str) -> None:
    if settings.tuning is not None and all(item.response is None for item in conversations):
        raise DataError(
            f"`prepare.tuning` learns from given responses, and `{source}` has none",
            hint="leave `prepare.tuning` out, or give each prompt a `response`",
        )


def _from_task(task: Task, settings: PrepareSettings) -> tuple[GivenTexts, GivenTexts, tuple[Path, ...]]:
    """Return both splits of a task as conversations, and the files of the held-out one."""
    data = None if settings.data is None else Path(settings.data)
    splits = task.training_splits()
    train, heldout = (
        GivenTexts(
            name=name,
            source=str(next(iter(task_files(task, split, data=data)), task.hub and task.hub.id)),
            conversations=[
                Conversation(
                    messages=({"role": "user", "content": row.prompt},),
                    response=row.references[0],
                    line=row.line,
                )
                for row in read_task_rows(task, split, data=data)
            ],
        )
        for name, split in zip(("training", "held-out"), splits, strict=True)
    )
    return train, heldout, task_files(task, splits[1], data=data)
