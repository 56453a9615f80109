from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ammd.runtime.artifact_ref import ArtifactRef
from ammd.runtime.evaluate import EvaluateInputs, run
from ammd.runtime.settings import EvaluateSettings

SETTINGS = EvaluateSettings(prompts=3, file_prompts=2, kl_texts=2, answer_tokens=64)


@pytest.fixture(scope="module")
def folder(
    tiny_checkpoint: Path, tiny_gguf: Path, tiny_heldout: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The stage on the teacher itself and on a file made of it, so that every number is known."""
    folder = tmp_path_factory.mktemp("evaluate")
    models = (
        ArtifactRef(name="teacher", path=tiny_checkpoint),
        ArtifactRef(name="gguf-f16", path=tiny_gguf),
    )
    results = run(
        EvaluateInputs(teacher=tiny_checkpoint, heldout=tiny_heldout, models=models), SETTINGS, folder
    )
    assert json.loads((folder / "quality.json").read_text()) == results["quality"]
    return folder


@pytest.fixture(scope="module")
def quality(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "quality.json").read_text())
    return found


def test_teacher_is_at_no_distance_from_itself(quality: dict[str, Any]) -> None:
    for name in ("teacher", "gguf-f16"):
        assert quality[name]["kl_to_teacher_nats"] < 1e-6
        assert quality[name]["top1_agreement"] == 1


def test_files_answer_fewer_prompts(quality: dict[str, Any]) -> None:
    assert quality["gguf-f16"]["prompts"] == 2
    assert quality["teacher"]["prompts"] == 3


def test_answers_are_no_longer_than_the_teachers_text(quality: dict[str, Any]) -> None:
    assert quality["gguf-f16"]["response_tokens_mean"] <= 12


def test_sampled_answers_are_less_likely_than_greedy_ones(quality: dict[str, Any]) -> None:
    teacher = quality["teacher"]
    assert teacher["sampled_nll_under_teacher_nats"] > teacher["nll_under_teacher_nats"] > 0
    assert 0 <= teacher["sampled_rouge_l"] <= 1
    assert "sampled_nll_under_teacher_nats" not in quality["gguf-f16"]


def test_references_are_used_where_they_are(quality: dict[str, Any]) -> None:
    assert 0 <= quality["teacher"]["rouge_l_reference"] <= 1


def test_answers_stand_side_by_side(folder: Path) -> None:
    lines = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    assert [sorted(line["answers"]) for line in lines] == [["gguf-f16", "teacher"]] * 2 + [["teacher"]]
    assert lines[0]["prompt"] == "Hello there"
    assert lines[0]["answers"]["gguf-f16"] == lines[0]["teacher_text"].strip()
    # Both sides are float32: the teacher says word for word what it is judged by.
    assert all(line["answers"]["teacher"] == line["teacher_text"].strip() for line in lines)
    assert sorted(path.name for path in folder.iterdir()) == ["answers.jsonl", "quality.json"]
