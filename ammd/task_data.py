"""The rows of a task: read from its file, filled into its prompt, checked."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRow:
    """One question with its right answers."""

    prompt: str  # the text of the user's message
    references: tuple[str, ...]  # at least one; the first is what a student may be trained on
    choices: tuple[str, ...]  # empty where the task has none
    line: int  # in the file, from 1
