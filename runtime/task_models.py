"""Several models answer several tasks: every number with its interval, every answer with its scores."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ammd.artifact import write_json
from ammd.durable import make_folder, write_text, writing_to
from ammd.errors import RecipeError
from ammd.progress import progress

from .artifact_ref import ArtifactRef
from .model_file import ModelFile, read_model_file
from .task_run import TaskQuestions, TaskScores, score_task

SCHEMA = "ammd.task/1"
SCORES_NAME, ROWS_NAME = "tasks.json", "task_rows.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelScores:
    """What a model is worth in each task."""

    model: ArtifactRef
    facts: ModelFile
    scores: tuple[TaskScores, ...]

    @property
    def numbers(self) -> dict[str, Any]:
        """The numbers of each task, by its name."""
        return {one.task: one.document for one in self.scores}


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskResults:
    """What was asked and what came of it."""

    questions: tuple[TaskQuestions, ...]
    models: tuple[ModelScores, ...]

    @property
    def asked(self) -> dict[str, Any]:
        """What a reader of scores has to know of each task, by its name."""
        return {one.task.name: one.as_json() for one in self.questions}

    def as_json(self) -> dict[str, Any]:
        """Return the document."""
        models = [
            {
                "name": one.model.name,
                "bytes": one.facts.bytes,
                "sha256": one.facts.sha256,
                "tasks": one.numbers,
            }
            for one in self.models
        ]
        return {"schema": SCHEMA, "tasks": self.asked, "models": models}

    def write(self, folder: Path) -> None:
        """Write the document, and every answer with its scores.

        Raises:
            ArtifactError: The folder cannot be written.
        """
        with writing_to(folder):
            make_folder(folder)
            write_json(folder / SCORES_NAME, self.as_json())
            write_text(folder / ROWS_NAME, "".join(self._lines()))

    def _lines(self) -> Iterator[str]:
        for model in self.models:
            for scores in model.scores:
                for row in scores.rows:
                    line: Mapping[str, Any] = {"model": scores.model, "task": scores.task, **row}
                    yield json.dumps(line, ensure_ascii=False) + "\n"


def score_models(
    models: Sequence[ArtifactRef], questions: Sequence[TaskQuestions], *, folder: Path | None
) -> TaskResults:
    """Let each model answer each task, as far as `folder` has no answers yet; see `score_task`.

    Raises:
        RecipeError: Two tasks have one name.
        ArtifactError: A model is missing or damaged, or the folder holds other answers.
        EngineError: A model cannot be run.
    """
    names = [one.task.name for one in questions]
    if len(set(names)) < len(names):
        raise RecipeError(f"two tasks have the same name: {', '.join(names)}")
    found = []
    for model in models:
        facts = read_model_file(model.path)
        scores = []
        for task in questions:
            with progress(f"{model.name}: {task.task.name}", task.jobs) as report:
                scores.append(score_task(model, facts, task, folder=folder, report=report))
        found.append(ModelScores(model=model, facts=facts, scores=tuple(scores)))
    return TaskResults(questions=tuple(questions), models=tuple(found))
