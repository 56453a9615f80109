"""Held-out prompts with the teacher's greedy responses, as the prepare stage writes them (JSONL)."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from ammd.errors import ArtifactError

_OF_TEACHER = ("teacher_prompt_ids", "teacher_response_ids")


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """One prompt that no model was trained on."""

    prompt: str
    response: str  # the teacher's greedy text
    prompt_ids: tuple[int, ...]  # rendered chat with the opening of the assistant's turn
    response_ids: tuple[int, ...]  # end token included where the teacher stopped by itself
    reference: str | None  # an answer by a person, where the data has one
    teacher_prompt_ids: tuple[int, ...] | None = None  # where the ids above are of a student's own tokenizer
    teacher_response_ids: tuple[int, ...] | None = None

    @property
    def for_teacher(self) -> HeldOut:
        """The same in the teacher's tokens."""
        if self.teacher_prompt_ids is None or self.teacher_response_ids is None:
            return self
        return replace(self, prompt_ids=self.teacher_prompt_ids, response_ids=self.teacher_response_ids)

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Prompt followed by response."""
        return self.prompt_ids + self.response_ids


def load_heldout(path: Path, *, limit: int) -> tuple[HeldOut, ...]:
    """Read the first `limit` lines.

    Raises:
        ArtifactError: No such file, no lines, or a line that is not of this form (its number is named).
    """
    try:
        lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    except (OSError, UnicodeDecodeError) as exc:
        raise ArtifactError(f"cannot read held-out prompts from `{path}`: {exc}", path=str(path)) from exc
    if not lines:
        raise ArtifactError(f"`{path}` holds no prompts", path=str(path))
    return tuple(_parse(line, where=f"{path}:{number}") for number, line in enumerate(lines[:limit], 1))


def is_prepared(path: Path) -> bool:
    """Tell whether the file's first line has token ids, as the prepare stage writes them.

    Raises:
        ArtifactError: The file cannot be read.
    """
    try:
        with path.open(encoding="utf-8") as stream:
            return '"prompt_ids"' in stream.readline()
    except (OSError, UnicodeDecodeError) as exc:
        raise ArtifactError(f"cannot read held-out prompts from `{path}`: {exc}", path=str(path)) from exc


def _parse(line: str, *, where: str) -> HeldOut:
    try:
        record = json.loads(line)
        row = HeldOut(
            prompt=record["prompt"],
            response=record["response"],
            prompt_ids=tuple(map(int, record["prompt_ids"])),
            response_ids=tuple(map(int, record["response_ids"])),
            reference=record.get("reference"),
            **{name: tuple(map(int, record[name])) for name in _OF_TEACHER if name in record},
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as exc:
        raise ArtifactError(f"`{where}` is no held-out prompt: {type(exc).__name__} {exc}") from exc
    if not all(isinstance(text, str) for text in (row.prompt, row.response, row.reference or "")):
        raise ArtifactError(f"`{where}` is no held-out prompt: a text is none")
    ids = [row.prompt_ids, row.response_ids, row.for_teacher.prompt_ids, row.for_teacher.response_ids]
    if not all(ids):
        raise ArtifactError(f"`{where}` has an empty prompt or response")
    return row
