"""What a language task is: its data, how a row becomes a prompt, how an answer is drawn, and what it is scored by.

A task is a TOML file; the packaged ones lie in `ammd/tasks`. `task_data` reads its rows.
"""

from __future__ import annotations

import string
import tomllib
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, ValidationError, field_validator, model_validator

from .errors import RecipeError
from .settings import Settings

Split = Literal["train", "dev", "test"]
PACKAGED = Path(__file__).with_name("tasks")


class TaskKind(StrEnum):
    """What an answer is judged by."""

    INSTRUCTION = "instruction"  # ROUGE-L against the best of the references
    SUMMARIZATION = "summarization"  # ROUGE-1, ROUGE-2, ROUGE-L
    TRANSLATION = "translation"  # BLEU, chrF
    CHOICE = "choice"  # is the right choice the likeliest one, and the one that the generated text names
    EXACT = "exact"  # is the last match of `answer_pattern` in the generated text the reference's
    PERPLEXITY = "perplexity"  # of the references themselves, nothing is generated


class HubData(Settings):
    """The same rows as a data set on a hub, for those who have one."""

    id: Annotated[str, StringConstraints(pattern=r"^[\w.-]+(/[\w.-]+)?$")]
    """As `datasets.load_dataset` takes it."""
    revision: str
    """Commit: what is fetched must not change."""
    config: str | None = None
    """Which of the data set's configurations."""
    splits: Mapping[Split, str] = {}
    """What the hub calls a split, where that is another name."""


class Task(Settings):
    """A task as its file says it."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
    """As in `ammd eval --task NAME`."""
    version: int = Field(ge=1)
    """Raised whenever a score would change for the same answers or the same model."""
    description: str
    """One line."""
    kind: TaskKind
    """What an answer is judged by."""
    data: Mapping[Split, str] = {}
    """JSONL of each split, below the data folder."""
    hub: HubData | None = None
    """Where `data` names no file for a split."""
    prompt: str = ""
    """With the row's fields in braces, as `Summarize: {source}`; empty for perplexity."""
    references: str
    """Field with the right answer, or with a list of right answers."""
    choices: tuple[str, ...] = ()
    """Of every row, for `choice`; the reference is one of them."""
    choices_field: str = ""
    """Field with a row's own list of choices, instead."""
    answer_pattern: str = ""
    """Regular expression whose last match (its first group, if it has one) is an answer's answer, for `exact`, and
    optionally for `choice`; references are read with it as well."""
    response_tokens: int = Field(default=64, ge=1)
    """Longest answer."""
    temperature: float = Field(default=0.0, ge=0)
    """0 takes the likeliest token; above, answers are drawn once for each seed."""
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = (0, 1, 2, 3, 4)
    """Of drawn answers; said nothing of at temperature 0."""
    rows: int | None = Field(default=None, ge=1)
    """Judge on this many rows, drawn once and for all from the split; absent, on all."""

    @field_validator("answer_pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        import re

        try:
            re.compile(pattern)
        except re.error as exc:
            raise ValueError(f"is no regular expression: {exc}") from exc
        return pattern

    @model_validator(mode="after")
    def _says_what_its_kind_needs(self) -> Self:
        if not self.prompt_fields and self.kind is not TaskKind.PERPLEXITY:
            raise ValueError("`prompt` names no field of a row, as `{question}` would")
        if (self.kind is TaskKind.CHOICE) != bool(self.choices or self.choices_field):
            raise ValueError('`choices` or `choices_field` go with kind "choice", which needs one')
        if self.kind is TaskKind.EXACT and not self.answer_pattern:
            raise ValueError('kind "exact" needs `answer_pattern`')
        if not self.data and self.hub is None:
            raise ValueError("has neither `data` nor `hub`")
        return self

    @property
    def prompt_fields(self) -> tuple[str, ...]:
        """The fields of a row that the prompt is made of."""
        return tuple(field for _, field, _, _ in string.Formatter().parse(self.prompt) if field)


def load_task(name: str) -> Task:
    """Read a packaged task by its name, or the one in a TOML file by its path.

    Raises:
        RecipeError: There is none, or it is none.
    """
    path = Path(name) if name.endswith(".toml") else PACKAGED / f"{name}.toml"
    if not path.is_file():
        hint = f"packaged tasks: {', '.join(packaged_tasks())}; or the path of a .toml file"
        raise RecipeError(f"no task `{name}`", hint=hint)
    try:
        return Task.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise RecipeError(f"cannot read the task `{path}`: {exc}") from exc
    except ValidationError as exc:
        faults = "; ".join(
            ".".join(map(str, fault["loc"])) + f" {fault['msg']}" for fault in exc.errors(include_url=False)
        )
        raise RecipeError(f"`{path}` is no task: {faults}", hint="docs/tasks.md lists every key") from exc


def packaged_tasks() -> tuple[str, ...]:
    """Return the names of the packaged tasks."""
    return tuple(sorted(path.stem for path in PACKAGED.glob("*.toml")))
