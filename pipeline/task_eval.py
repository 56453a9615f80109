"""What `ammd eval --task` does: models that lie anywhere answer tasks, and the document says where they lie."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ammd.runtime.artifact_ref import ArtifactRef, EngineKind
from ammd.runtime.task_models import score_models
from ammd.runtime.task_run import load_questions
from ammd.task import Split

from .alone import named


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
    results = score_models(models, questions, folder=out)
    document = results.as_json()
    for row, model in zip(document["models"], models, strict=True):
        row["path"] = str(model.path)
    if out is not None:
        results.write(out)
        document["path"] = str(out.resolve())
    return document
