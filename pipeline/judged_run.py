"""A finished run as a comparison reads it: its summary, every prompt's scores, and the texts.

Two models are compared on the prompts that both answered, and only where these are the same prompts with the same text
by the teacher: what is judged against another text is another number.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ammd.artifact import load_manifest
from ammd.errors import ArtifactError, NotComparableError
from ammd.runtime.task_models import ROWS_NAME as TASK_ROWS_NAME

from .runs import find_run, read_summary
from .table import model_rows

Row = Mapping[str, Any]
STUDENT = "student"


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgedRun:
    """A finished run."""

    folder: Path
    summary: Mapping[str, Any]
    scores: Mapping[str, Mapping[int, Row]]  # by model, then by prompt
    lines: Sequence[Row]  # of answers.jsonl, one a prompt
    task_rows: Mapping[tuple[str, str], Sequence[Row]] = field(
        default_factory=dict
    )  # by model and language task

    @property
    def label(self) -> str:
        """Its name in messages and tables."""
        return str(self.summary["run"])

    def row(self, model: str) -> Row:
        """Return the summary's row of a model."""
        return next(row for row in model_rows(self.summary) if row["name"] == model)

    def answer(self, model: str, prompt: int) -> str:
        """Return what a model said."""
        return str(self.lines[prompt]["answers"][model])


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A model of each run, and the prompts that both answered."""

    first: str
    second: str
    prompts: tuple[int, ...]

    @property
    def label(self) -> str:
        """One name for both."""
        return self.first if self.first == self.second else f"{self.first} → {self.second}"


def read_side(text: str, *, runs_dir: Path) -> tuple[JudgedRun, str | None]:
    """Return the run that `RUN` or `RUN:MODEL` names, and the model where one is named.

    Raises:
        ArtifactError: There is no such run or model, the run is not finished, or it was made before prompts were scored
            one by one.
    """
    run, colon, model = text.rpartition(":")
    judged = read_judged(find_run(run if colon else text, runs_dir=runs_dir))
    if colon and model not in judged.scores:
        raise ArtifactError(
            f"run `{judged.label}` has no model `{model}`", hint=f"it has {', '.join(judged.scores)}"
        )
    return judged, model if colon else None


def read_judged(folder: Path) -> JudgedRun:
    """Read a finished run.

    Raises:
        ArtifactError: See `read_side`.
    """
    summary, stage = read_summary(folder), folder / "evaluate"
    load_manifest(stage)
    if not (stage / "scores.jsonl").is_file():
        raise ArtifactError(
            f"run `{summary['run']}` was judged by an older version: it has no scores.jsonl",
            hint=f"`ammd run {folder / 'recipe.toml'}` judges it anew",
            path=str(stage),
        )
    scores: dict[str, dict[int, Row]] = {}
    for row in _read_lines(stage / "scores.jsonl"):
        scores.setdefault(row["model"], {})[row["prompt"]] = row
    task_rows: dict[tuple[str, str], list[Row]] = {}
    if (path := stage / TASK_ROWS_NAME).is_file():
        for row in _read_lines(path):
            task_rows.setdefault((row["model"], row["task"]), []).append(row)
    return JudgedRun(
        folder=folder,
        summary=summary,
        scores=scores,
        lines=_read_lines(stage / "answers.jsonl"),
        task_rows=task_rows,
    )


def pair_models(
    first: JudgedRun, second: JudgedRun, *, models: tuple[str | None, str | None]
) -> tuple[Pair, ...]:
    """Return what is compared: the named models, else the student and every file that both runs have.

    Raises:
        ArtifactError: One run lacks the model that is named for the other, or nothing is in both.
    """
    named = (models[0] or models[1], models[1] or models[0])
    if named[0] is not None and named[1] is not None:
        names = [(named[0], named[1])]
    else:
        files = [row["name"] for row in first.summary["artifacts"]]
        names = [(name, name) for name in (STUDENT, *files) if name in first.scores and name in second.scores]
    for run, name in ((first, named[0]), (second, named[1])):
        if name is not None and name not in run.scores:
            raise ArtifactError(
                f"run `{run.label}` has no model `{name}`", hint=f"it has {', '.join(run.scores)}"
            )
    if not names:
        raise ArtifactError(f"`{first.label}` and `{second.label}` have no model in common")
    return tuple(
        Pair(first=old, second=new, prompts=_shared(first.scores[old], second.scores[new]))
        for old, new in names
    )


def _shared(first: Mapping[int, Row], second: Mapping[int, Row]) -> tuple[int, ...]:
    return tuple(prompt for prompt in sorted(first) if prompt in second)


def check_same_prompts(first: JudgedRun, second: JudgedRun) -> None:
    """Compare prompts and the teacher's texts as far as both runs go.

    Raises:
        NotComparableError: Names the first that differs.
    """
    for number, (old, new) in enumerate(zip(first.lines, second.lines, strict=False), 1):
        for key, what in (("prompt", "prompt"), ("teacher_text", "the teacher's text to prompt")):
            if old[key] != new[key]:
                raise NotComparableError(
                    f"not comparable: {what} {number} is `{_short(old[key])}` in `{first.label}` and "
                    f"`{_short(new[key])}` in `{second.label}`",
                    hint="both runs need the same held-out prompts, answered by the same teacher",
                    prompt=number,
                )


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else f"{line[:59]}…"


def _read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
