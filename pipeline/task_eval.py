"""What `ammd eval --task` does: several models answer several tasks, and each number comes with its interval."""

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
from ammd.runtime.artifact_ref import ArtifactRef, EngineKind
from ammd.runtime.model_file import read_model_file
from ammd.runtime.task_run import TaskQuestions, TaskScores, load_questions, score_task
from ammd.task import Split

from .alone import named

SCHEMA = "ammd.task/1"
SCORES_NAME, ROWS_NAME = "tasks.json", "task_rows.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answered:
    """A model with what it is worth in each task."""

    ref: ArtifactRef
    bytes: int
    sha256: str
    scores: tuple[TaskScores, ...]


def score_tasks(
    paths: Sequence[Path],
    *,
    tasks: Sequence[str],
    data: Path | None,
    split: Split,
    rows: int | None,
    out: Path | None,
    engine: str | None,
) -> dict[str, Any]:
    """Return the document of models and tasks; with `out`, keep it there with every row's answer and scores.

    Raises:
        AmmdError: See `api.evaluate_tasks`.
    """
    models = [
        ArtifactRef(
            name=str(one["name"]),
            path=Path(str(one["path"])),
            engine=EngineKind(one["engine"]) if one["engine"] else None,
        )
        for one in named(paths, engine=engine)
    ]
    questions = [load_questions(task, data=data, split=split, limit=rows) for task in tasks]
    names = [one.task.name for one in questions]
    if len(set(names)) < len(names):
        raise RecipeError(f"two tasks have the same name: {', '.join(names)}")
    answered = [_answer(model, questions, out) for model in models]
    document = {
        "schema": SCHEMA,
        "tasks": {one.task.name: one.as_json() for one in questions},
        "models": [_model_row(model) for model in answered],
    }
    if out is not None:
        _keep(out, document, answered)
        document["path"] = str(out.resolve())
    return document


def _answer(model: ArtifactRef, questions: Sequence[TaskQuestions], out: Path | None) -> _Answered:
    facts = read_model_file(model.path)
    scores = []
    for task in questions:
        with progress(f"{model.name}: {task.task.name}", task.jobs) as report:
            scores.append(score_task(model, facts, task, folder=out, report=report))
    return _Answered(ref=model, bytes=facts.bytes, sha256=facts.sha256, scores=tuple(scores))


def _model_row(model: _Answered) -> dict[str, Any]:
    return {
        "name": model.ref.name,
        "path": str(model.ref.path),
        "bytes": model.bytes,
        "sha256": model.sha256,
        "tasks": {one.task: one.document for one in model.scores},
    }


def _keep(out: Path, document: Mapping[str, Any], answered: Sequence[_Answered]) -> None:
    with writing_to(out):
        make_folder(out)
        write_json(out / SCORES_NAME, document)
        write_text(out / ROWS_NAME, "".join(_lines(answered)))


def _lines(answered: Sequence[_Answered]) -> Iterator[str]:
    for model in answered:
        for scores in model.scores:
            for row in scores.rows:
                line = {"model": scores.model, "task": scores.task, **row}
                yield json.dumps(line, ensure_ascii=False) + "\n"
