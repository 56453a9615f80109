"""Models answer tasks: the same on every engine, whatever the order, and a kill costs no row."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ammd.errors import ArtifactError, EngineError
from ammd.runtime.artifact_ref import ArtifactRef
from ammd.runtime.model_file import read_model_file
from ammd.runtime.task_run import TaskQuestions, TaskScores, load_questions, score_task

QUESTIONS = (
    "Hello there",
    "What is in a name?",
    "count to 10",
    "the thing and another",
    "Größe",
    "and the rest",
)


@pytest.fixture
def questions(tmp_path: Path) -> Callable[..., TaskQuestions]:
    """Write a task with its data and read it."""

    def questions(
        kind: str, *, rows: int | None = None, count: int = len(QUESTIONS), **more: object
    ) -> TaskQuestions:
        data = tmp_path / "data"
        data.mkdir(exist_ok=True)
        lines = [
            {
                "q": QUESTIONS[place % len(QUESTIONS)] + " !" * (place // len(QUESTIONS)),
                "a": ["yes", "the thing"][: 1 + (kind != "choice")],
            }
            for place in range(count)
        ]
        (data / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        keys = {
            "name": "t",
            "version": 1,
            "description": "d",
            "kind": kind,
            "references": "a",
            "prompt": "{q}",
        }
        keys |= {"response_tokens": 6, **more}
        text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())
        path = tmp_path / f"{kind}.toml"
        path.write_text(text + '[data]\ntest = "t.jsonl"\n')
        return load_questions(str(path), data=data, limit=rows)

    return questions


def score(path: Path, questions: TaskQuestions, folder: Path, *, name: str = "m") -> TaskScores:
    ref = ArtifactRef(name=name, path=path)
    return score_task(
        ref, read_model_file(path), questions, folder=folder, report=lambda _done, note="": None
    )


def texts_of(scores: TaskScores) -> dict[tuple[int, int | None], str]:
    return {(row["row"], row["seed"]): row["text"] for row in scores.rows if row["job"] == "answer"}


@pytest.mark.parametrize("model", ["tiny_checkpoint", "tiny_gguf", "tiny_onnx"])
def test_every_engine_writes_transformers_greedy_text(
    model: str,
    tiny_checkpoint: Path,
    questions: Callable[..., TaskQuestions],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    import torch

    from ammd.runtime.torch_engine import load_model, load_tokenizer

    asked = questions("instruction")
    found = score(request.getfixturevalue(model), asked, tmp_path / "out")
    network, tokenizer = load_model(tiny_checkpoint), load_tokenizer(tiny_checkpoint)
    for row in found.rows:
        chat = [{"role": "user", "content": QUESTIONS[row["row"] - 1]}]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        said = network.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
        response = said[0, ids.shape[1] :]
        assert row["text"] == tokenizer.decode(response, skip_special_tokens=True).strip()
        assert row["tokens"] == len(response)
        assert row["ended"] == (int(response[-1]) == 2)
    assert found.document["rows"] == len(found.rows) == len(QUESTIONS)
    assert set(found.document["metrics"]) == {"rouge_l"}


@pytest.mark.parametrize("model", ["tiny_checkpoint", "tiny_gguf"])
def test_a_drawn_answer_depends_on_its_seed_and_row_alone(
    model: str, questions: Callable[..., TaskQuestions], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(model)
    all_rows = questions("instruction", temperature=1.0, seeds=[3, 4])
    found = texts_of(score(path, all_rows, tmp_path / "all"))
    assert len(found) == 2 * len(QUESTIONS) == len(set(found.values()))
    fewer = texts_of(
        score(path, questions("instruction", temperature=1.0, seeds=[4], rows=3), tmp_path / "few")
    )
    assert len(fewer) == 3
    assert fewer.items() <= found.items()


@pytest.mark.parametrize("model", ["tiny_checkpoint", "tiny_gguf"])
def test_choices_are_chosen_by_transformers_log_probabilities(
    model: str,
    tiny_checkpoint: Path,
    questions: Callable[..., TaskQuestions],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    import torch

    from ammd.runtime.torch_engine import load_model, load_tokenizer

    choices = ["yes", "no", "the other thing"]
    found = score(request.getfixturevalue(model), questions("choice", choices=choices), tmp_path / "out")
    network, tokenizer = load_model(tiny_checkpoint), load_tokenizer(tiny_checkpoint)
    right = {"accuracy": 0, "accuracy_per_byte": 0}
    rows = [row for row in found.rows if row["job"] == "choices"]
    for row in rows:
        chat = [{"role": "user", "content": QUESTIONS[row["row"] - 1]}]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        context = tokenizer(text, add_special_tokens=False)["input_ids"]
        expected = []
        for choice in choices:
            ids = tokenizer(choice, add_special_tokens=False)["input_ids"]
            with torch.inference_mode():
                logprobs = network(torch.tensor([[*context, *ids]])).logits[0].double().log_softmax(-1)
            expected.append(
                sum(float(logprobs[len(context) - 1 + at, token]) for at, token in enumerate(ids))
            )
        assert row["logprobs"] == pytest.approx(expected, abs=1e-3)
        right["accuracy"] += expected.index(max(expected)) == 0
        per_byte = [one / len(choice) for one, choice in zip(expected, choices, strict=True)]
        right["accuracy_per_byte"] += per_byte.index(max(per_byte)) == 0
    metrics = found.document["metrics"]
    for key, count in right.items():
        assert metrics[key]["value"] == pytest.approx(count / len(rows))
    assert "accuracy_of_answer" in metrics


def test_perplexity_is_that_of_the_references(
    tiny_checkpoint: Path, questions: Callable[..., TaskQuestions], tmp_path: Path
) -> None:
    import torch

    from ammd.runtime.torch_engine import load_model, load_tokenizer

    found = score(tiny_checkpoint, questions("perplexity", prompt=""), tmp_path / "out")
    network, tokenizer = load_model(tiny_checkpoint), load_tokenizer(tiny_checkpoint)
    nats = tokens = 0
    for text in ("yes", "the thing"):
        ids = torch.tensor([[1, *tokenizer(text, add_special_tokens=False)["input_ids"]]])
        with torch.inference_mode():
            nats += float(network(ids, labels=ids).loss) * (ids.shape[1] - 1)
        tokens += ids.shape[1] - 1
    metrics = found.document["metrics"]
    assert metrics["token_perplexity"]["value"] == pytest.approx(
        torch.tensor(nats / tokens).exp().item(), rel=1e-4
    )
    assert metrics["byte_perplexity"]["value"] == pytest.approx(
        torch.tensor(nats / 12).exp().item(), rel=1e-4
    )
    assert found.document["chat_sha256"] is None


def test_what_is_there_is_not_asked_again(
    tiny_gguf: Path, questions: Callable[..., TaskQuestions], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = questions("instruction", temperature=1.0, seeds=[0, 1])
    first = score(tiny_gguf, asked, tmp_path)
    monkeypatch.setattr("ammd.runtime.task_run.Child", None)
    assert score(tiny_gguf, asked, tmp_path) == first


@pytest.mark.parametrize(("model", "cuts"), [("tiny_checkpoint", (12,)), ("tiny_gguf", (-1, 0, 3, 12))])
def test_a_file_that_was_cut_off_anywhere_goes_on_to_the_same_answers(
    model: str,
    cuts: tuple[int, ...],
    questions: Callable[..., TaskQuestions],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    path, asked = request.getfixturevalue(model), questions("choice", choices=["yes", "no"], temperature=1.0)
    whole = score(path, asked, tmp_path)
    file = tmp_path / "t" / "m" / "rows.jsonl"
    content = file.read_bytes()
    ends = [place + 1 for place, byte in enumerate(content) if byte == ord("\n")]
    for cut in cuts:  # after so many lines, in the midst of the next
        file.write_bytes(content[: ends[cut] + 9 if cut >= 0 else 9])
        found = score(path, asked, tmp_path)
        assert texts_of(found) == texts_of(whole)
        assert found.document["metrics"] == whole.document["metrics"]
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        jobs = [(line["job"], line["row"], line["seed"]) for line in lines if "job" in line]
        assert len(jobs) == len(set(jobs)) == asked.jobs


def test_a_killed_evaluation_goes_on(
    tiny_gguf: Path, questions: Callable[..., TaskQuestions], tmp_path: Path
) -> None:
    """A real process, killed while it answers."""
    asked = questions("instruction", count=24, response_tokens=100)
    out = tmp_path / "out"
    command = [sys.executable, "-c", "from ammd.pipeline.cli import main; main()", "eval", str(tiny_gguf)]
    command += [
        "--task",
        str(tmp_path / "instruction.toml"),
        "--data",
        str(tmp_path / "data"),
        "--out",
        str(out),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    file = out / "t" / "gguf-f32" / "rows.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and (not file.exists() or file.read_bytes().count(b"\n") < 3):
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = file.read_bytes().rpartition(b"\n")[0]
    assert 2 <= kept.count(b"\n") < 24
    found = score(tiny_gguf, asked, out, name="gguf-f32")
    assert file.read_bytes().startswith(kept)
    undisturbed = score(tiny_gguf, asked, tmp_path / "other")
    assert texts_of(found) == texts_of(undisturbed)
    assert found.document["metrics"] == undisturbed.document["metrics"]


def test_answers_of_another_model_task_or_rows_are_not_mixed_in(
    tiny_gguf: Path,
    make_gguf: Callable[..., Path],
    tiny_checkpoint: Path,
    questions: Callable[..., TaskQuestions],
    tmp_path: Path,
) -> None:
    asked = questions("instruction")
    score(tiny_gguf, asked, tmp_path)
    kept = (tmp_path / "t" / "m" / "rows.jsonl").read_bytes()
    other = make_gguf(tiny_checkpoint, tmp_path / "other.gguf", noise=0.1)
    for path, questioned, what in (
        (other, asked, "another model"),
        (tiny_gguf, questions("instruction", prompt="{q}?"), "another version of the task"),
        (tiny_gguf, questions("instruction", rows=3), "other rows of the task"),
    ):
        with pytest.raises(ArtifactError, match=f"holds answers of {what}") as caught:
            score(path, questioned, tmp_path)
        assert "--out" in caught.value.hint
    assert (tmp_path / "t" / "m" / "rows.jsonl").read_bytes() == kept


def test_damage_is_told_and_nothing_is_added(
    tiny_gguf: Path, questions: Callable[..., TaskQuestions], tmp_path: Path
) -> None:
    asked = questions("instruction")
    score(tiny_gguf, asked, tmp_path)
    file = tmp_path / "t" / "m" / "rows.jsonl"
    lines = file.read_bytes().split(b"\n")
    lines[2] = lines[2][:10]
    file.write_bytes(b"\n".join(lines))
    with pytest.raises(ArtifactError, match="is damaged"):
        score(tiny_gguf, asked, tmp_path)


def test_without_a_folder_each_model_has_a_place_in_the_cache(
    tiny_gguf: Path,
    tiny_onnx: Path,
    questions: Callable[..., TaskQuestions],
    tmp_path: Path,
    monkeypatch: Any,
) -> None:
    monkeypatch.setenv("AMMD_CACHE", str(tmp_path / "cache"))
    asked = questions("instruction", rows=2)
    for path in (tiny_gguf, tiny_onnx, tiny_gguf):
        score(path, asked, None)  # type: ignore[arg-type]
    assert len(list((tmp_path / "cache" / "tasks").iterdir())) == 2


def test_a_prompt_that_does_not_fit_loses_its_middle(
    tiny_checkpoint: Path, tiny_gguf: Path, questions: Callable[..., TaskQuestions], tmp_path: Path
) -> None:
    long = "Begin: {q} " + "so it goes on and on, the thing " * 60 + "end"  # beyond the context of 512
    found = [
        score(path, questions("instruction", prompt=long, rows=2), tmp_path / path.name)
        for path in (tiny_checkpoint, tiny_gguf)
    ]
    assert texts_of(found[0]) == texts_of(found[1])
    assert [one.document["shortened_rows"] for one in found] == [2, 2]
    with pytest.raises(EngineError, match="leaves 12 tokens for a prompt"):
        score(tiny_gguf, questions("instruction", prompt=long, response_tokens=500), tmp_path / "none")
