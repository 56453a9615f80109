"""Let a model answer tasks, and score what it says: checkpoints and exported files alike.

Each model answers in a child of its own, which streams its records; they are kept in `rows.jsonl` as they come
(`task_rows`), and what is there already is not asked again. Scores are computed from the records each time.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ammd.artifact import hash_text
from ammd.fetch import user_cache
from ammd.machine import available_cores
from ammd.progress import Progress
from ammd.task import Split, Task, load_task
from ammd.task_data import TaskDigest, TaskRow, digest_rows, read_task_rows

from .artifact_ref import ArtifactRef, EngineKind
from .child import Child
from .model_file import ModelFile
from .task_jobs import JobKind, jobs_of
from .task_rows import Asked, RowsFile, open_rows
from .task_scores import score_answers, score_choices, signatures, summarize

CODE_VERSION = 2  # raised when the same model would say something else to the same task
_LIBRARIES: Mapping[EngineKind, Sequence[str]] = {
    EngineKind.TORCH: ("torch", "transformers"),
    EngineKind.LLAMA_CPP: ("llama-cpp-python",),
    EngineKind.ONNX_GENAI: ("onnxruntime-genai",),
    EngineKind.ONNX_RUNTIME: ("onnxruntime",),
}
_UNSCORED = (
    "description",
    "data",
    "hub",
    "rows",
)  # keys of a task that change neither answers nor scores of its rows


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskQuestions:
    """A task with the rows that are asked."""

    task: Task
    rows: tuple[TaskRow, ...]
    digest: TaskDigest

    @property
    def jobs(self) -> int:
        """How much a model is asked."""
        return len(jobs_of(self.task, self.rows))

    @property
    def sha256(self) -> str:
        """Hash of what the task's file says about asking and scoring."""
        said = self.task.model_dump(mode="json", exclude=set(_UNSCORED))
        return hash_text(json.dumps(said, sort_keys=True, ensure_ascii=False))

    def as_json(self) -> dict[str, Any]:
        """Return what a reader of scores has to know of the task."""
        task = self.task
        return {
            "version": task.version,
            "kind": task.kind.value,
            "task_sha256": self.sha256,
            **{key: value for key, value in asdict(self.digest).items() if key not in ("task", "version")},
            "response_tokens": task.response_tokens,
            "temperature": task.temperature,
            "seeds": list(task.seeds) if task.temperature else [],
            "signatures": signatures(task, self.rows),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskScores:
    """What a model is worth in a task."""

    model: str
    task: str
    document: dict[str, Any]  # numbers of all rows
    rows: tuple[dict[str, Any], ...]  # answers and scores of each


def load_questions(
    name: str, *, data: Path | None, split: Split = "test", limit: int | None = None
) -> TaskQuestions:
    """Read a task, packaged or of a file, and the rows of it that are asked.

    Raises:
        RecipeError: There is no such task, or it has no such split.
        DataError: Its rows cannot be read.
    """
    task = load_task(name)
    rows = read_task_rows(task, split, data=data, limit=limit)
    return TaskQuestions(task=task, rows=rows, digest=digest_rows(task, split, rows, data=data))


def score_task(
    model: ArtifactRef, facts: ModelFile, questions: TaskQuestions, *, folder: Path | None, report: Progress
) -> TaskScores:
    """Let a model answer a task, as far as it has not done so yet, and return its scores.

    Args:
        model: A checkpoint or an exported file.
        facts: Of it.
        questions: The task.
        folder: Where answers are kept, in TASK/MODEL; None takes the user's cache, where each model and task has a
            place of its own.
        report: Is told how many of the task's `jobs` are done.

    Raises:
        ArtifactError: The folder holds other answers, or cannot be written.
        EngineError: The model cannot be run.
    """
    asked = _asked(model, facts, questions)
    place = (
        folder / questions.task.name / model.name.replace("/", "-")
        if folder
        else user_cache() / "tasks" / hash_text(json.dumps(asdict(asked)))[:16]
    )
    with open_rows(place, asked) as kept:
        _answer(model, facts, questions, kept, report)
    return _scores(model, facts, questions, kept)


def _asked(model: ArtifactRef, facts: ModelFile, questions: TaskQuestions) -> Asked:
    versions = [f"{library} {importlib.metadata.version(library)}" for library in _LIBRARIES[model.kind]]
    return Asked(
        model_sha256=facts.sha256,
        engine=", ".join([model.kind.value, *versions]),
        task_sha256=questions.sha256,
        rows_sha256=hash_text(f"{questions.digest.rows_sha256} {[row.line for row in questions.rows]}"),
        code_version=CODE_VERSION,
    )


def _answer(
    model: ArtifactRef, facts: ModelFile, questions: TaskQuestions, kept: RowsFile, report: Progress
) -> None:
    """Ask what has not been answered yet."""
    report(len(kept.records))
    if len(kept.records) == questions.jobs:
        return
    request = {
        "path": str(model.path),
        "engine": model.kind.value,
        "threads": available_cores(),
        "context_limit": facts.context_tokens,
        "task": questions.task.model_dump(mode="json"),
        "rows": [asdict(row) for row in questions.rows],
        "done": [{key: record[key] for key in ("job", "row", "seed")} for record in kept.records],
    }
    with Child() as child:
        for part in child.stream("task_answers:answer_task", request):
            kept.add(part)
            report(len(kept.records))


def _scores(model: ArtifactRef, facts: ModelFile, questions: TaskQuestions, kept: RowsFile) -> TaskScores:
    task = questions.task
    by_line = {row.line: row for row in questions.rows}
    rows = _score_rows(task, by_line, kept.records)
    answers = [row for row in rows if "tokens" in row and "text" in row]
    numbers: dict[str, Any] = {
        "metrics": summarize(task.kind, rows),
        "rows": len(questions.rows),
        "seconds": round(sum(record["seconds"] for record in kept.records), 3),
        **kept.about,
    }
    if answers:
        numbers["response_tokens_mean"] = sum(row["tokens"] for row in answers) / len(answers)
        numbers["ended_share"] = sum(row["ended"] for row in answers) / len(answers)
    numbers["shortened_rows"] = len({row["row"] for row in rows if row.get("shortened")})
    numbers["model_sha256"] = facts.sha256
    return TaskScores(model=model.name, task=task.name, document=numbers, rows=tuple(rows))


def _score_rows(
    task: Task, rows: Mapping[int, TaskRow], records: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return each record with its scores, in the order of rows and seeds whatever that of answering was."""
    ordered = sorted(
        records, key=lambda one: (one["row"], one["job"], -1 if one["seed"] is None else one["seed"])
    )
    answers = [one for one in ordered if one["job"] == JobKind.ANSWER.value]
    scores = iter(
        score_answers(task, [rows[one["row"]] for one in answers], [one["text"] for one in answers])
    )
    found = []
    for record in ordered:
        line = dict(record)
        if record["job"] == JobKind.ANSWER.value:
            line |= next(scores)
        elif record["job"] == JobKind.CHOICES.value:
            line |= score_choices(rows[record["row"]], record["logprobs"])
        found.append(line)
    return found
