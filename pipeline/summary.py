"""The run as one JSON document: what `--json` prints, `summary.json` keeps, and tables and report read.

It is put together from the manifests and the stages' own result files, so a finished run can be summarised
again at any time. docs/fields.md defines every number in it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ammd.artifact import hash_weights
from ammd.machine import describe_machine

from .bench_proofs import name_proofs, proofs_of
from .budget import judge
from .cache import Done
from .costs import total_costs
from .provenance import provenance
from .recipe import Recipe

SCHEMA = "ammd.run/1"
_COUNTS = ("train_prompts", "train_response_tokens", "teacher_written", "train_left_out", "heldout_left_out")
_CUTS = (
    "kept_layers",
    "block_influence",
    "kept_encoder_layers",
    "encoder_block_influence",
    "kept_key_value_heads",
    "intermediate_size",
    "fallback_rows",
)
# Model name -> where its checkpoint lies in the run.
CHECKPOINTS = {
    "teacher": ("prepare", "teacher"),
    "student-pruned": ("prepare", "student"),
    "student-warm": ("distill", "warm"),
    "student": ("distill", "student"),
}


def build_summary(recipe: Recipe, folder: Path, done: Mapping[str, Done]) -> dict[str, Any]:
    """Return the document of a run in which the stages in `done` are finished."""
    last = list(done.values())[-1].manifest if done else None
    summary = {
        "schema": SCHEMA,
        "run": f"{recipe.name}/{folder.name}",
        "path": str(folder.resolve()),
        "seconds": round(sum(item.manifest.seconds for item in done.values()), 3),
        "peak_rss_bytes": max((item.manifest.peak_rss_bytes for item in done.values()), default=0),
        "costs": total_costs([item.manifest for item in done.values()]),
        "stages": [_stage_row(name, item) for name, item in done.items()],
        "models": [_model_row(name, done) for name, (stage, _) in CHECKPOINTS.items() if stage in done],
        "origin": _origin(recipe, done),
        "training": _training(done),
        "tuning": _results(done, "prepare").get("tuning"),
        "vocabulary": _results(done, "prepare").get("vocabulary"),
        "match": _results(done, "prepare").get("match"),
        "artifacts": [_artifact_row(row, done) for row in _results(done, "export").get("artifacts", [])],
        "imatrix": _results(done, "export").get("imatrix"),
        "machine": describe_machine(),
        "measured_on": _results(done, "bench").get("machine"),
        "validity_rule": _results(done, "bench").get("validity_rule"),
        "profiles": _results(done, "bench").get("profiles", []),
        "tasks": _results(done, "evaluate").get("tasks", {}),
        "versions": dict(last.versions) if last else {},
        "recipe": recipe.model_dump(mode="json"),
    }
    heldout = done["evaluate"].manifest.inputs["heldout"] if "evaluate" in done else ""
    verdict = judge(recipe.budget, summary, heldout=heldout, runs_dir=folder.parent.parent)
    return summary | {"budget": verdict}


def _stage_row(name: str, done: Done) -> dict[str, Any]:
    return {
        "stage": name,
        "seconds": done.manifest.seconds,
        "peak_rss_bytes": done.manifest.peak_rss_bytes,
        "cached": done.cached,
    }


def _model_row(name: str, done: Mapping[str, Done]) -> dict[str, Any]:
    stage, part = CHECKPOINTS[name]
    prefix = f"{part}/"
    weights = (
        record.bytes
        for record in done[stage].manifest.files
        if record.path.startswith(prefix) and record.path.endswith(".safetensors")
    )
    return {
        "name": name,
        "path": str((done[stage].folder / part).resolve()),
        "bytes": sum(weights),
        "quality": _results(done, "evaluate").get("quality", {}).get(name),
        "tasks": _results(done, "evaluate").get("task_scores", {}).get(name),
        "bench": _bench(name, done),
    }


def _artifact_row(row: Mapping[str, Any], done: Mapping[str, Done]) -> dict[str, Any]:
    name = row["name"]
    return {
        **row,
        "path": str((done["export"].folder / row["path"]).resolve()),
        "parity": _results(done, "verify").get("parity", {}).get(name),
        "quality": _results(done, "evaluate").get("quality", {}).get(name),
        "tasks": _results(done, "evaluate").get("task_scores", {}).get(name),
        "bench": _bench(name, done),
    }


def _bench(name: str, done: Mapping[str, Done]) -> Mapping[str, Any] | None:
    """Return a model's speed, with what is proven of the same file."""
    found: dict[str, Any] | None = _results(done, "bench").get("bench", {}).get(name)
    if found is None:
        return None
    record: dict[str, Any] = copy.deepcopy(found)
    name_proofs([record], proofs_of(_results(done, "verify").get("parity", {})))
    return record


def _origin(recipe: Recipe, done: Mapping[str, Done]) -> dict[str, Any] | None:
    """Return what the exported files say of their origin; None before there is a student."""
    if "distill" not in done:
        return None
    known = provenance(recipe.name, done["prepare"].manifest, done["distill"].manifest)
    stage, part = CHECKPOINTS["student"]
    return asdict(known) | {"student_sha256": hash_weights(done[stage].folder / part)}


def _training(done: Mapping[str, Done]) -> dict[str, Any]:
    """Return what was counted on the way to the student."""
    prepared, distilled = _results(done, "prepare"), _results(done, "distill")
    student = prepared.get("student", {})
    cuts = {key: student[key] for key in _CUTS if student.get(key)}
    counts = {key: prepared[key] for key in _COUNTS if key in prepared}
    return counts | cuts | dict(distilled)  # which knows better what is left, where layers go in stages


def _results(done: Mapping[str, Done], stage: str) -> Mapping[str, Any]:
    return done[stage].manifest.results if stage in done else {}
