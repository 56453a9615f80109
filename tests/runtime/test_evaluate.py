from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ammd.runtime import evaluate
from ammd.runtime.answers import score_answers
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


def test_every_model_answers_the_tasks_too_and_a_killed_stage_goes_on(
    tiny_checkpoint: Path, tiny_gguf: Path, tiny_heldout: Path, tmp_path: Path
) -> None:
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"q": q, "a": "the thing"}) + "\n" for q in "abcd"))
    task = tmp_path / "t.toml"
    task.write_text(
        'name = "t"\nversion = 1\ndescription = ""\nkind = "instruction"\nprompt = "{q}"\nreferences = "a"\n'
        'response_tokens = 5\ndata = { test = "t.jsonl" }\n'
    )
    models = (ArtifactRef(name="teacher", path=tiny_checkpoint), ArtifactRef(name="gguf-f16", path=tiny_gguf))
    settings = EvaluateSettings(
        prompts=1,
        sampled_prompts=1,
        file_prompts=1,
        kl_texts=1,
        tasks=(str(task),),
        task_rows=3,
        data=str(tmp_path),
    )
    inputs = EvaluateInputs(
        teacher=tiny_checkpoint, heldout=tiny_heldout, models=models, resume=tmp_path / "resume"
    )
    (folder := tmp_path / "stage").mkdir()
    results = run(inputs, settings, folder)
    document = json.loads((folder / "tasks.json").read_text())
    assert document["tasks"] == results["tasks"]
    assert results["tasks"]["t"]["rows"] == 3
    rows = [json.loads(line) for line in (folder / "task_rows.jsonl").read_text().splitlines()]
    assert [row["model"] for row in rows] == ["teacher"] * 3 + ["gguf-f16"] * 3
    assert [row["text"] for row in rows[:3]] == [row["text"] for row in rows[3:]]
    for name in ("teacher", "gguf-f16"):
        metric = results["task_scores"][name]["t"]["metrics"]["rouge_l"]
        assert metric["low"] <= metric["value"] <= metric["high"]
    kept = tmp_path / "resume" / "t" / "gguf-f16" / "rows.jsonl"
    before = kept.read_bytes()
    (again := tmp_path / "again").mkdir()
    evaluate._score_tasks(inputs, settings, again)
    assert kept.read_bytes() == before  # nothing was asked again
    assert (again / "task_rows.jsonl").read_bytes() == (folder / "task_rows.jsonl").read_bytes()


@pytest.fixture(scope="module")
def other_tokens(
    tiny_checkpoint: Path,
    renumbered_checkpoint: Path,
    tiny_heldout: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The stage on the teacher and on a student that says the same in tokens of its own."""
    folder = tmp_path_factory.mktemp("other-tokens")
    student = AutoTokenizer.from_pretrained(renumbered_checkpoint)
    lines = []
    for row in map(json.loads, tiny_heldout.read_text().splitlines()):
        for name in ("prompt_ids", "response_ids"):
            row[f"teacher_{name}"] = row[name]
            row[name] = [len(student) - 1 - token_id for token_id in row[name]]
        lines.append(json.dumps(row))
    (folder / "heldout.jsonl").write_text("\n".join(lines))
    models = (
        ArtifactRef(name="teacher", path=tiny_checkpoint),
        ArtifactRef(name="student", path=renumbered_checkpoint),
    )
    inputs = EvaluateInputs(teacher=tiny_checkpoint, heldout=folder / "heldout.jsonl", models=models)
    run(inputs, SETTINGS, folder)
    return folder


OF_ONE_VOCABULARY = {
    "kl_to_teacher_nats",
    "tv_to_teacher",
    "top1_agreement",
    "agreement_sure",
    "agreement_unsure",
    "teacher_sure_share",
    "kl_on_own_nats",
    "tv_on_own",
    "exposure_bias_nats",
    "exposure_bias_tv",
    "greedy_prefix_tokens",
    "nll_under_teacher_nats",
    "sampled_nll_under_teacher_nats",
}


def test_a_student_of_other_tokens_is_judged_by_its_texts(other_tokens: Path) -> None:
    found = json.loads((other_tokens / "quality.json").read_text())
    teacher, student = found["teacher"], found["student"]
    assert teacher["kl_to_teacher_nats"] < 1e-6
    assert teacher.keys() - student.keys() == OF_ONE_VOCABULARY & teacher.keys()
    assert not student.keys() & OF_ONE_VOCABULARY
    assert student["greedy_same_share"] == 1
    for name in ("rouge_l", "repetition", "ended_share", "response_tokens_mean", "prompts"):
        assert student[name] == teacher[name]


def test_the_teacher_reads_texts_of_other_tokens_by_the_byte(tiny_checkpoint: Path) -> None:
    """Against transformers' own loss on prompt and text."""
    prompt = [1, 9, 20, 30]
    answers = [
        {"text": "the an in \u00e9", "ended": True},
        {"text": "then", "ended": False},
        {"text": "", "ended": True},
    ]
    request = {
        "path": str(tiny_checkpoint),
        "prompts": [prompt] * 3,
        "answers": {},
        "keep": {},
        "texts_of": {"student/answers": answers},
        "texts": 0,
        "threads": 1,
    }
    *found, empty = score_answers(request)["student/answers"]
    assert empty is None
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint)
    for score, answer in zip(found, answers, strict=False):
        text = str(answer["text"])
        said = tokenizer.encode(text, add_special_tokens=False) + [2] * bool(answer["ended"])
        ids = torch.tensor([prompt + said])
        labels = torch.tensor([[-100] * len(prompt) + said])
        with torch.no_grad():
            nats = float(model(input_ids=ids, labels=labels).loss) * len(said)
        # The teacher reads in bfloat16 where the processor has that.
        assert score == pytest.approx(nats / len(text.encode()), rel=0.02)


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
    assert sorted(path.name for path in folder.iterdir()) == ["answers.jsonl", "quality.json", "scores.jsonl"]


def test_teacher_keeps_everything_and_parts_nowhere(quality: dict[str, Any]) -> None:
    for name in ("teacher", "gguf-f16"):
        found = quality[name]
        assert found["greedy_same_share"] == 1
        assert "task_score_kept" not in found  # of a random teacher's score, which is 0, there is no share
        assert found["greedy_prefix_tokens"] == found["response_tokens_mean"]
        assert found["tv_to_teacher"] < 1e-3
        for what in ("repetition", "looping_share", "response_tokens_mean", "ended_share"):
            assert found[what] == found[f"teacher_{what}"]
        # The teacher reads in bfloat16 where that is fast: what this rounds is all that is left.
        assert abs(found["exposure_bias_nats"]) < 1e-3


def test_numbers_are_what_the_rows_amount_to(folder: Path, quality: dict[str, Any]) -> None:
    rows = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
    assert [(row["model"], row["prompt"]) for row in rows] == [
        *(("teacher", number) for number in range(3)),
        *(("gguf-f16", number) for number in range(2)),
    ]
    own = [row for row in rows if row["model"] == "teacher"]
    tokens = sum(row["response_tokens"] for row in own)
    nats = sum(row["response_tokens"] * row["nll_under_teacher_nats"] for row in own) / tokens
    assert quality["teacher"]["nll_under_teacher_nats"] == pytest.approx(nats)
    assert quality["teacher"]["kl_positions"] == sum(row.get("teacher_text_tokens", 0) for row in own)


def test_distances_on_both_texts_are_those_of_transformers(
    tiny_checkpoint: Path, tiny_heldout: Path, build_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    """Every distribution of a student that is far off, by transformers' own logits and greedy search."""
    import torch
    from transformers import AutoModelForCausalLM

    student = build_checkpoint(tmp_path / "student", seed=5, initializer_range=0.08)
    (tmp_path / "out").mkdir()
    run(
        EvaluateInputs(
            teacher=tiny_checkpoint,
            heldout=tiny_heldout,
            models=(ArtifactRef(name="student", path=student),),
        ),
        SETTINGS.model_copy(update={"kl_texts": 3}),
        tmp_path / "out",
    )
    lines = (tmp_path / "out" / "scores.jsonl").read_text().splitlines()
    models = [AutoModelForCausalLM.from_pretrained(path) for path in (tiny_checkpoint, student)]
    heldout = [json.loads(line) for line in tiny_heldout.read_text().splitlines()]
    for line, row in zip(map(json.loads, lines), heldout, strict=False):
        prompt, response = row["prompt_ids"], row["response_ids"]
        own = (
            models[1]
            .generate(
                torch.tensor([prompt]),
                max_new_tokens=12,
                do_sample=False,
                attention_mask=torch.ones(1, len(prompt)),
            )[0, len(prompt) :]
            .tolist()
        )
        for text, kl_name, tv_name, share in (
            (response, "kl_to_teacher_nats", "tv_to_teacher", 1e-4),
            (own, "kl_on_own_nats", "tv_on_own", 0.02),  # the teacher may have read in bfloat16
        ):
            with torch.inference_mode():
                p, q = (
                    model(torch.tensor([[*prompt, *text]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
                    for model in models
                )
            assert line[kl_name] == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=share)
            assert line[tv_name] == pytest.approx(
                float((p.exp() - q.exp()).abs().sum(-1).mean() / 2), rel=share
            )
        sure = p.exp().max(-1).values >= 0.5
        assert not sure.any()  # a random teacher never is
        assert line["exposure_bias_nats"] == pytest.approx(
            line["kl_on_own_nats"] - line["kl_to_teacher_nats"]
        )
        parted = next(n for n, (a, b) in enumerate(zip(own, response, strict=False)) if a != b)
        assert line["greedy_prefix_tokens"] == parted
        assert line["greedy_same"] == 0
