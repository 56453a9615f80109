"""The evaluate stage: how good is each model, next to the teacher, on prompts nobody trained on.

Every exported file answers in a child of its own; checkpoints answer in one for torch, in which the teacher then
scores all answers. What stands in `quality.json` for each model:

- `kl_to_teacher_nats`: mean KL(teacher || model) a token on the teacher's held-out text
- `top1_agreement`: share of its tokens where both like the same token best
- `rouge_l`: ROUGE-L of the greedy answers against the teacher's greedy text
- `rouge_l_reference`: the same against written references, where the data has them
- `repetition`, `looping_share`: see `quality`
- `nll_under_teacher_nats`: mean -log p(token) under the teacher of the greedy answers; low is likely text,
  but loops are likely too, so read it beside `repetition`
- `sampled_nll_under_teacher_nats`, `sampled_rouge_l`, `sampled_repetition`: of answers sampled at temperature 1
  (checkpoints), as papers on distillation measure them
- `response_tokens_mean`, `ended_share`: length, and share of answers that the model ended itself
- `prompts`, `kl_positions`: how much was measured
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ammd.artifact import write_json
from ammd.machine import available_cores
from ammd.progress import progress

from .artifact_ref import ArtifactRef, EngineKind
from .child import Child, call
from .heldout import HeldOut, load_heldout
from .quality import looping_share, repetition, rouge_l
from .settings import EvaluateSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateInputs:
    """What is evaluated."""

    teacher: Path  # checkpoint
    heldout: Path  # JSONL with the teacher's greedy responses
    models: tuple[ArtifactRef, ...]  # checkpoints and exported files


def run(inputs: EvaluateInputs, settings: EvaluateSettings, folder: Path) -> dict[str, Any]:
    """Measure every model; write `quality.json` and `answers.jsonl`.

    Raises:
        ArtifactError: An input is missing or malformed.
        EngineError: A model cannot be loaded or run.
    """
    rows = load_heldout(inputs.heldout, limit=settings.prompts)
    kinds = {model.name: model.kind for model in inputs.models}  # a missing one is reported before any work
    with Child() as torch, progress("evaluate", len(inputs.models) + 2) as report:
        report(0, "teacher")
        records = _measure_models(torch, inputs, settings, folder, kinds=kinds, rows=rows, report=report)
        report(len(inputs.models) + 1, "scores")
        scores = _score(torch, inputs.teacher, rows, records)
        report(len(inputs.models) + 2)
    quality = {name: _summarize(name, record, rows=rows, scores=scores) for name, record in records.items()}
    write_json(folder / "quality.json", quality)
    _write_answers(folder / "answers.jsonl", rows, records)
    return {"quality": quality}


def _measure_models(
    torch: Child,
    inputs: EvaluateInputs,
    settings: EvaluateSettings,
    folder: Path,
    *,
    kinds: Mapping[str, EngineKind],
    rows: Sequence[HeldOut],
    report: Any,
) -> dict[str, dict[str, Any]]:
    """Return each model's answers and its comparison with the teacher."""
    records: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(dir=folder, prefix=".teacher-") as teacher:
        request: dict[str, object] = {
            "heldout": str(inputs.heldout),
            "folder": teacher,
            "texts": settings.kl_texts,
            # Longer answers than the teacher's text would be compared with nothing.
            "answer_tokens": min(settings.answer_tokens, max(len(row.response_ids) for row in rows)),
            "sampled_prompts": settings.sampled_prompts,
            "seed": settings.seed,
            "threads": available_cores(),
        }
        torch.call("answers:save_teacher", request | {"path": str(inputs.teacher)})
        for done, model in enumerate(inputs.models, 1):
            report(done, model.name)
            is_checkpoint = kinds[model.name] is EngineKind.TORCH
            count = settings.prompts if is_checkpoint else min(settings.prompts, settings.file_prompts)
            asked = request | {
                "path": str(model.path),
                "engine": kinds[model.name].value,
                "prompts": count,
            }
            records[model.name] = (
                torch.call("answers:measure_checkpoint", asked)
                if is_checkpoint
                else call("answers:measure_file", asked)
            )
    return records


def _score(
    torch: Child, teacher: Path, rows: Sequence[HeldOut], records: Mapping[str, Mapping[str, Any]]
) -> dict[str, float | None]:
    """Return the teacher's mean -log p for every set of answers, named `model/answers`."""
    sets = {
        f"{name}/{kind}": [answer["ids"] for answer in record[kind]]
        for name, record in records.items()
        for kind in ("answers", "sampled")
        if kind in record
    }
    request = {
        "path": str(teacher),
        "prompts": [row.prompt_ids for row in rows],
        "answers": sets,
        "threads": available_cores(),
    }
    return torch.call("answers:score_answers", request)


def _summarize(
    name: str,
    record: Mapping[str, Any],
    *,
    rows: Sequence[HeldOut],
    scores: Mapping[str, float | None],
) -> dict[str, Any]:
    answers: Sequence[Mapping[str, Any]] = record["answers"]
    texts = [answer["text"] for answer in answers]
    asked = rows[: len(answers)]
    quality: dict[str, Any] = {
        "kl_to_teacher_nats": record["kl_nats"],
        "top1_agreement": record["top1_agreement"],
        "kl_positions": record["positions"],
        "prompts": len(answers),
        "rouge_l": rouge_l(texts, [row.response for row in asked]),
        "repetition": repetition(texts),
        "looping_share": looping_share(texts),
        "nll_under_teacher_nats": scores[f"{name}/answers"],
        "response_tokens_mean": sum(len(answer["ids"]) for answer in answers) / len(answers),
        "ended_share": sum(answer["ended"] for answer in answers) / len(answers),
    }
    referenced = [(text, row.reference) for text, row in zip(texts, asked, strict=True) if row.reference]
    if referenced:
        quality["rouge_l_reference"] = rouge_l(
            [text for text, _ in referenced], [reference for _, reference in referenced]
        )
    if "sampled" in record:
        sampled = [answer["text"] for answer in record["sampled"]]
        targets = [row.response for row in rows[: len(sampled)]]
        quality["sampled_nll_under_teacher_nats"] = scores[f"{name}/sampled"]
        quality["sampled_rouge_l"] = rouge_l(sampled, targets)
        quality["sampled_repetition"] = repetition(sampled)
    return quality


def _write_answers(path: Path, rows: Sequence[HeldOut], records: Mapping[str, Mapping[str, Any]]) -> None:
    """Write one line a prompt with every model's greedy answer to it."""
    with path.open("w", encoding="utf-8") as stream:
        for number, row in enumerate(rows):
            answers = {
                name: record["answers"][number]["text"]
                for name, record in records.items()
                if number < len(record["answers"])
            }
            line = {"prompt": row.prompt, "teacher_text": row.response, "answers": answers}
            stream.write(json.dumps(line, ensure_ascii=False) + "\n")
