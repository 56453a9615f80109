"""What a language task is: its data, how a row becomes a prompt, how an answer is drawn, and what it is scored by.

A task is a TOML file; the packaged ones lie in `ammd/tasks`. `task_data` reads its rows.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from .artifact import check_relative, is_there
from .errors import ArtifactError, RecipeError
from .settings import Pattern, Settings
from .task_template import check_field, parse_template

Split = Literal["train", "dev", "test"]
PACKAGED = Path(__file__).with_name("tasks")


def _inside(name: str) -> str:
    try:
        return check_relative(name)
    except ArtifactError as exc:
        raise ValueError(f"{exc}: it has to stay within the data folder") from exc


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


_FieldName = Annotated[str, AfterValidator(check_field)]


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

    id: Annotated[str, StringConstraints(pattern=r"^\w[\w.-]*(/\w[\w.-]*)?$")]
    """As `datasets.load_dataset` takes it; a copy in the data folder lies in a folder of this name."""
    revision: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")]
    """Commit: what is fetched must not change."""
    config: str | None = None
    """Which of the data set's configurations."""
    splits: Mapping[Split, str] = {"train": "train", "dev": "validation", "test": "test"}
    """What the hub calls each split that it has."""


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
    data: Mapping[Split, Annotated[str, AfterValidator(_inside)]] = {}
    """JSONL of each split, below the data folder."""
    hub: HubData | None = None
    """Where `data` names no file for a split."""
    prompt: str = ""
    """With the row's fields in braces, as `Summarize: {source}`; empty for perplexity."""
    references: Annotated[tuple[_FieldName, ...], BeforeValidator(_listed), Field(min_length=1)]
    """Field with the right answer, or with a list of right answers; of several, the first that a row has."""
    choices: tuple[str, ...] = ()
    """Of every row, for `choice`; the reference is one of them."""
    choices_field: str = ""
    """Field with a row's own list of choices, instead."""
    answer_pattern: Pattern = ""
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

    @field_validator("prompt")
    @classmethod
    def _has_plain_fields(cls, prompt: str) -> str:
        parse_template(prompt)
        return prompt

    @field_validator("choices_field")
    @classmethod
    def _is_a_field(cls, name: str) -> str:
        return check_field(name) if name else name

    @field_validator("choices")
    @classmethod
    def _differ(cls, choices: tuple[str, ...]) -> tuple[str, ...]:
        if choices and len(set(choices)) < max(2, len(choices)):
            raise ValueError("should be two or more different ones")
        return choices

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
        for names in (self.data, self.hub.splits if self.hub else {}):
            if len(set(names.values())) < len(names):
                raise ValueError(
                    "has two splits from one place, so that one would be judged by what it learnt"
                )
        return self

    @property
    def prompt_fields(self) -> tuple[str, ...]:
        """The fields of a row that the prompt is made of."""
        return tuple(field for _, field in parse_template(self.prompt) if field)

    def training_splits(self) -> tuple[Split, Split]:
        """Return the split to train on and the one to hold out, `dev`, or `test` where there is no dev.

        Raises:
            RecipeError: The task has no prompts, none to train on, or none to hold out.
        """
        held_out = next((split for split in ("dev", "test") if split in self.splits), None)
        if self.kind is TaskKind.PERPLEXITY or "train" not in self.splits or held_out is None:
            raise RecipeError(
                f"task `{self.name}` is to judge by: it has no prompts to train on and others to hold out",
                hint=f"its splits: {', '.join(self.splits)}",
            )
        return "train", held_out

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits that it has."""
        known = {*self.data, *(self.hub.splits if self.hub else ())}
        return tuple(split for split in get_args(Split) if split in known)


def load_task(name: str) -> Task:
    """Read a packaged task by its name, or the one in a TOML file by its path.

    Raises:
        RecipeError: There is none, or it is none.
    """
    is_own = name.endswith(".toml")
    path = Path(name) if is_own else PACKAGED / f"{name}.toml"
    if not (is_there(path) if is_own else name in packaged_tasks()):
        hint = f"packaged tasks: {', '.join(packaged_tasks())}; or the path of a .toml file"
        raise RecipeError(f"no task `{name}`", hint=hint)
    try:
        return Task.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except ValidationError as exc:
        faults = "; ".join(
            " ".join([*(f"`{key}`" for key in fault["loc"]), fault["msg"].removeprefix("Value error, ")])
            for fault in exc.errors(include_url=False)
        )
        raise RecipeError(f"`{path}` is no task: {faults}", hint="docs/tasks.md lists every key") from exc
    except (OSError, ValueError, RecursionError) as exc:
        raise RecipeError(f"cannot read the task `{path}`: {exc}") from exc


def packaged_tasks() -> tuple[str, ...]:
    """Return the names of the packaged tasks."""
    return tuple(sorted(path.stem for path in PACKAGED.glob("*.toml")))
