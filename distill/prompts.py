"""Prompts and responses as token ids, and the file that keeps them.

Token ids keep prompt and response apart, so that nothing has to be searched for later: the prompt's ids are
the rendered template up to and including the generation prompt; the response's ids end with the end token.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ammd.conversations import Conversation
from ammd.errors import DataError

from .batches import TokenPair

_OF_TEACHER = ("teacher_prompt_ids", "teacher_response_ids")


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A prompt and a response in text and in token ids."""

    prompt: str
    response: str
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]  # end token included where the response ended by itself
    teacher_prompt_ids: tuple[int, ...] | None = (
        None  # where the student's tokenizer, which made the ids, is its own
    )
    teacher_response_ids: tuple[int, ...] | None = None

    @property
    def pair(self) -> TokenPair:
        """Prompt and response in the student's tokens."""
        return self.prompt_ids, self.response_ids

    @property
    def teacher_pair(self) -> TokenPair:
        """Prompt and response in the teacher's tokens."""
        return self.teacher_prompt_ids or self.prompt_ids, self.teacher_response_ids or self.response_ids


def check_lengths(
    prompt_ids: Sequence[tuple[int, ...]],
    conversations: Sequence[Conversation],
    *,
    path: Path,
    room: int,
) -> None:
    """Check that each rendered prompt leaves room for a response in the model's context.

    Raises:
        DataError: Names the first prompt that does not.
    """
    for ids, conversation in zip(prompt_ids, conversations, strict=True):
        if len(ids) > room:
            raise DataError(
                f"the prompt at `{path}` line {conversation.line} has {len(ids)} tokens, "
                f"the model's context leaves room for {room}",
                hint="shorten the prompt or `prepare.response_tokens`",
                line=conversation.line,
            )


def write_examples(path: Path, examples: Sequence[Example], *, references: Sequence[str | None] = ()) -> None:
    """Write examples as JSONL, one object a line, with a `reference` where there is one."""
    with path.open("w", encoding="utf-8") as stream:
        for index, example in enumerate(examples):
            row: dict[str, Any] = {
                "prompt": example.prompt,
                "response": example.response,
                "prompt_ids": example.prompt_ids,
                "response_ids": example.response_ids,
            }
            for name in _OF_TEACHER:
                if (ids := getattr(example, name)) is not None:
                    row[name] = ids
            if index < len(references) and references[index] is not None:
                row["reference"] = references[index]
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def read_examples(path: Path) -> list[Example]:
    """Read what `write_examples` wrote.

    Raises:
        DataError: The file is missing or a line is not an example.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
        rows = [json.loads(line) for line in lines if line]
        return [
            Example(
                prompt=row["prompt"],
                response=row["response"],
                prompt_ids=tuple(row["prompt_ids"]),
                response_ids=tuple(row["response_ids"]),
                **{name: tuple(row[name]) for name in _OF_TEACHER if name in row},
            )
            for row in rows
        ]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as exc:
        raise DataError(f"`{path}` is not a file of examples: {exc}", path=str(path)) from exc
