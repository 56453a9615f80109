"""The evaluate stage: how good is each model, next to the teacher, on prompts nobody trained on.

Every exported file answers in a child of its own; checkpoints answer in one for torch, in which the teacher then
reads all answers; and then each model is compared with the teacher on what it said itself. `scores.jsonl` has one row
a model and prompt, `quality.json` what a model's rows amount to (`transfer`), `answers.jsonl` the texts.

Where settings name language tasks, every model answers those as well: `tasks.json` has the numbers, `task_rows.jsonl`
every answer with its scores.

A student with a tokenizer of its own has no distribution over the teacher's tokens. It is judged by its texts alone,
which the teacher reads in its own tokens; how likely it finds them is then said a byte.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ammd.artifact import write_json
from ammd.machine import available_cores
from ammd.progress import progress

from .artifact_ref import ArtifactRef, EngineKind
from .child import Child, call
from .heldout import HeldOut, load_heldout
from .settings import EvaluateSettings
from .task_models import score_models
from .task_run import load_questions
from .transfer import score_rows, summarize


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateInputs:
    """What is evaluated."""

    teacher: Path  # checkpoint
    heldout: Path  # JSONL with the teacher's greedy responses
    models: tuple[ArtifactRef, ...]  # checkpoints and exported files
    resume: Path | None = None  # keeps the answers to tasks if this is killed


def run(inputs: EvaluateInputs, settings: EvaluateSettings, folder: Path) -> dict[str, Any]:
    """Measure every model; write `quality.json`, `scores.jsonl` and `answers.jsonl`.

    Raises:
        RecipeError: A task is unknown, or two have one name.
        DataError: A task's rows cannot be read.
        ArtifactError: An input is missing or malformed.
        EngineError: A model cannot be loaded or run.
    """
    rows = load_heldout(inputs.heldout, limit=max(settings.prompts, settings.kl_texts))
    kinds = {model.name: model.kind for model in inputs.models}  # a missing one is reported before any work
    with (
        Child() as torch,
        tempfile.TemporaryDirectory(dir=folder, prefix=".teacher-") as work,
        progress("evaluate", 2 * len(inputs.models) + 2) as report,
    ):
        asking = _Asking(
            torch=torch,
            inputs=inputs,
            settings=settings,
            rows=rows,
            kinds=kinds,
            work=Path(work),
            report=report,
        )
        report(0, "teacher")
        teacher = asking.save_teacher()
        records = asking.let_answer()
        asking.let_teacher_read(records)
        asking.compare_own_texts(records)
    scores = [
        row
        for name, record in records.items()
        for row in score_rows(name, record, rows=rows, teacher=teacher)
    ]
    quality = {name: summarize([row for row in scores if row["model"] == name]) for name in records}
    write_json(folder / "quality.json", quality)
    _write_lines(folder / "scores.jsonl", scores)
    _write_lines(folder / "answers.jsonl", _answer_lines(rows, records))
    return {"quality": quality} | (_score_tasks(inputs, settings, folder) if settings.tasks else {})


def _score_tasks(inputs: EvaluateInputs, settings: EvaluateSettings, folder: Path) -> dict[str, Any]:
    """Return what was asked as `tasks`, and the numbers of each model as `task_scores`."""
    data = None if settings.data is None else Path(settings.data)
    questions = [load_questions(task, data=data, limit=settings.task_rows) for task in settings.tasks]
    with tempfile.TemporaryDirectory(dir=folder, prefix=".answers-") as work:
        results = score_models(inputs.models, questions, folder=inputs.resume or Path(work))
    results.write(folder)
    return {"tasks": results.asked, "task_scores": {one.model.name: one.numbers for one in results.models}}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asking:
    """The steps of the stage, each of which asks the children something about every model."""

    torch: Child
    inputs: EvaluateInputs
    settings: EvaluateSettings
    rows: Sequence[HeldOut]
    kinds: Mapping[str, EngineKind]
    work: Path
    report: Any

    def save_teacher(self) -> list[dict[str, Any]]:
        """Return the teacher's own texts as answers; its states on them are saved."""
        found = self.torch.call("answers:save_teacher", self._request | {"path": str(self.inputs.teacher)})
        return list(found["answers"])

    def let_answer(self) -> dict[str, dict[str, Any]]:
        """Return each model's answers and how far it is from the teacher on the teacher's texts."""
        records: dict[str, dict[str, Any]] = {}
        for done, model in enumerate(self.inputs.models, 1):
            self.report(done, model.name)
            asked = self._request | {
                "path": str(model.path),
                "engine": self.kinds[model.name].value,
                "own_states": str(self._states("own", model.name)),
            }
            asked |= {"of_teacher": self._is_teacher(model), "compares": self._compares(model)}
            if self.kinds[model.name] is EngineKind.TORCH:
                records[model.name] = self.torch.call("answers:measure_checkpoint", asked)
            else:
                asked["prompts"] = min(self.settings.prompts, self.settings.file_prompts)
                records[model.name] = call("answers:measure_file", asked)
        return records

    def let_teacher_read(self, records: Mapping[str, Mapping[str, Any]]) -> None:
        """Give every answer the teacher's mean -log p of its tokens; save its states behind the greedy ones."""
        self.report(len(records) + 1, "scores")
        sets = {
            (name, kind): record[kind]
            for name, record in records.items()
            for kind in ("answers", "sampled")
            if kind in record
        }
        own = {model.name for model in self.inputs.models if not self._compares(model)}
        request = self._request | {
            "path": str(self.inputs.teacher),
            "prompts": [row.for_teacher.prompt_ids for row in self.rows],
            "answers": {
                f"{name}/{kind}": [answer["ids"] for answer in found]
                for (name, kind), found in sets.items()
                if name not in own
            },
            "texts_of": {
                f"{name}/{kind}": [{"text": answer["text"], "ended": answer["ended"]} for answer in found]
                for (name, kind), found in sets.items()
                if name in own
            },
            "keep": {f"{name}/answers": str(self._states("teacher", name)) for name in records},
        }
        scores = self.torch.call("answers:score_answers", request)
        for (name, kind), found in sets.items():
            for answer, score in zip(found, scores[f"{name}/{kind}"], strict=True):
                if name in own:
                    answer["nats_per_byte"] = score
                    continue
                answer["nats"] = score
                if own and (size := len(answer["text"].encode())):  # to compare them with
                    answer["nats_per_byte"] = score * len(answer["ids"]) / size

    def compare_own_texts(self, records: Mapping[str, dict[str, Any]]) -> None:
        """Add to every record how far the model is from the teacher on its own greedy texts."""
        for done, model in enumerate(self.inputs.models, len(records) + 2):
            self.report(done, f"{model.name}, own texts")
            if not self._compares(model):
                records[model.name]["own_texts"] = []
                continue
            answers = records[model.name]["answers"][: self.settings.kl_texts]
            request = self._request | {
                "path": str(model.path),
                "engine": self.kinds[model.name].value,
                "prompts": [row.for_teacher.prompt_ids for row in self.rows[: len(answers)]],
                "answers": [answer["ids"] for answer in answers],
                "own_states": str(self._states("own", model.name)),
                "teacher_states": str(self._states("teacher", model.name)),
            }
            records[model.name] |= (
                self.torch.call("answers:compare_own_checkpoint_texts", request)
                if self.kinds[model.name] is EngineKind.TORCH
                else call("answers:compare_own_file_texts", request)
            )

    def _is_teacher(self, model: ArtifactRef) -> bool:
        return model.path.resolve() == self.inputs.teacher.resolve()

    def _compares(self, model: ArtifactRef) -> bool:
        """Tell whether a model speaks in the teacher's tokens."""
        return self.rows[0].for_teacher is self.rows[0] or self._is_teacher(model)

    @property
    def _request(self) -> dict[str, Any]:
        return {
            "heldout": str(self.inputs.heldout),
            "folder": str(self.work),
            "prompts": self.settings.prompts,
            "texts": self.settings.kl_texts,
            # Longer answers than the teacher's text would be compared with nothing.
            "answer_tokens": min(
                self.settings.answer_tokens, max(len(row.response_ids) for row in self.rows)
            ),
            "teacher_answer_tokens": min(
                self.settings.answer_tokens, max(len(row.for_teacher.response_ids) for row in self.rows)
            ),
            "sampled_prompts": self.settings.sampled_prompts,
            "seed": self.settings.seed,
            "threads": available_cores(),
        }

    def _states(self, reader: str, writer: str) -> Path:
        """Return where the states lie that `reader`, `own` or `teacher`, had on what the model `writer` wrote."""
        return self.work / f"{reader}-{list(self.kinds).index(writer)}.safetensors"


def _answer_lines(
    rows: Sequence[HeldOut], records: Mapping[str, Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Give one line a prompt with every model's greedy answer to it."""
    for number, row in enumerate(rows):
        answers = {
            name: record["answers"][number]["text"]
            for name, record in records.items()
            if number < len(record["answers"])
        }
        yield {"prompt": row.prompt, "teacher_text": row.response, "answers": answers}


def _write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as stream:
        for line in lines:
            stream.write(json.dumps(line, ensure_ascii=False) + "\n")
