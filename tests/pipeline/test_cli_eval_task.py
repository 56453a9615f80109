"""`ammd eval --task`: what it prints and writes, and what it refuses."""

import json
import statistics

import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer

from ammd.encoder_decoder import load_language_model
from ammd.export.to_gguf import write_gguf

TASK = """\
name = "capitals"
version = 3
description = "Capitals"
kind = "choice"
prompt = "Capital of {country}?"
references = "capital"
choices = ["Lima", "Quito"]
response_tokens = 4
temperature = 1.0
seeds = [1, 2]

[data]
test = "capitals.jsonl"
"""


@pytest.fixture
def task(tmp_path, monkeypatch):
    """A task file and its data in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AMMD_CACHE", str(tmp_path / "cache"))
    (tmp_path / "capitals.toml").write_text(TASK)
    rows = [{"country": "Peru", "capital": "Lima"}, {"country": "Ecuador", "capital": "Quito"}]
    (tmp_path / "capitals.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "capitals.toml"


def test_document_says_what_was_asked_and_what_came_of_it(task, tiny_checkpoint, ammd, tmp_path):
    options = ("--task", task, "--data", ".", "--out", "scores", "--json", "--quiet")
    status, out, err = ammd("eval", str(tiny_checkpoint), *options)
    assert status == 0, err
    document = json.loads(out)
    assert document["schema"] == "ammd.task/1"
    asked = document["tasks"]["capitals"]
    assert (asked["version"], asked["kind"], asked["split"], asked["rows"]) == (3, "choice", "test", 2)
    assert asked["seeds"] == [1, 2]
    assert all(
        len(asked[key]) == 64 for key in ("task_sha256", "template_sha256", "rows_sha256", "source_sha256")
    )
    (model,) = document["models"]
    assert model["name"] == "checkpoint"
    assert len(model["sha256"]) == 64
    numbers = model["tasks"]["capitals"]
    assert set(numbers["metrics"]) == {"accuracy", "accuracy_per_byte", "accuracy_of_answer"}
    for metric in numbers["metrics"].values():
        assert 0 <= metric["low"] <= metric["value"] <= metric["high"] <= 1
    assert numbers["engine"].startswith("torch ")
    assert len(numbers["chat_sha256"]) == 64
    written = json.loads((tmp_path / "scores" / "tasks.json").read_text())
    assert written["tasks"] == document["tasks"]
    assert written["models"] == [{key: value for key, value in model.items() if key != "path"}]
    rows = [json.loads(line) for line in (tmp_path / "scores" / "task_rows.jsonl").read_text().splitlines()]
    assert [(row["job"], row["row"], row["seed"]) for row in rows] == [
        ("answer", 1, 1),
        ("answer", 1, 2),
        ("choices", 1, None),
        ("answer", 2, 1),
        ("answer", 2, 2),
        ("choices", 2, None),
    ]
    assert (
        ammd("eval", str(tiny_checkpoint), *options)[1] == out
    )  # found, not asked again: the same seconds, too


def test_table_has_each_number_with_its_interval(task, tiny_checkpoint, ammd, tmp_path):
    status, out, _ = ammd(
        "eval", str(tiny_checkpoint), "--task", task, "--data", ".", "--rows", "1", "--quiet"
    )
    assert status == 0
    assert "capitals, version 3: 1 rows of test, mean of 2 seeds" in out
    assert "by likelihood per byte" in out
    assert " to " in out
    assert list((tmp_path / "cache" / "tasks").iterdir())  # kept without `--out`, too


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ("--task", "capitals.toml", "--teacher", "x"),
            "`--teacher` is an option of the comparison with a teacher",
        ),
        (("--task", "capitals.toml", "--set", "prompts=1"), "`--set` is an option of the comparison"),
        (("--rows", "3"), "`--rows` is an option of `--task`, which is not given"),
        (("--data", "."), "`--data` is an option of `--task`"),
    ],
)
def test_options_of_the_other_mode_are_refused(options, message, task, tiny_checkpoint, ammd):
    status, _, err = ammd("eval", str(tiny_checkpoint), *options)
    assert status == 2
    assert message in " ".join(err.split())


def test_an_unknown_task_and_missing_data_are_one_line(task, tiny_checkpoint, ammd):
    status, _, err = ammd("eval", str(tiny_checkpoint), "--task", "nothing", "--data", ".")
    assert status == 2
    assert "no task `nothing`" in err
    assert "hint: packaged tasks:" in err
    status, _, err = ammd("eval", str(tiny_checkpoint), "--task", task, "--data", "elsewhere")
    assert status == 4
    assert "no data folder at `elsewhere`" in err
    status, _, err = ammd("eval", str(tiny_checkpoint), "--task", task, "--data", ".", "--split", "dev")
    assert status == 2
    assert "task `capitals` has no split `dev`, only test" in err
    status, _, err = ammd("eval", str(tiny_checkpoint), "--task", task, "--task", task, "--data", ".")
    assert status == 2
    assert "two tasks have the same name" in err


SUMMARIES = """\
name = "summaries"
version = 1
description = "Summaries"
kind = "summarization"
prompt = "summarize: {text}"
references = "summary"
response_tokens = 12

[data]
test = "texts.jsonl"
"""
SOURCES = (
    "Water that falls as rain runs down in small streams.",
    "People have built towns on these flat places.",
    "The quick brown fox jumps over the lazy dog.",
)


def test_an_encoder_decoder_is_worth_what_transformers_greedy_text_is(
    unigram_t5, ammd, tmp_path, monkeypatch
):
    """Greedy answers by `generate`, scored by rouge-score."""
    from transformers import AutoTokenizer

    tokenizer, model = (
        AutoTokenizer.from_pretrained(unigram_t5),
        load_language_model(unigram_t5, dtype=torch.float32),
    )
    answers = []
    for text in SOURCES:
        source = tokenizer(f"summarize: {text}", return_tensors="pt").input_ids
        said = model.generate(source, max_new_tokens=12, do_sample=False)
        answers.append(tokenizer.decode(said[0], skip_special_tokens=True).strip())
    summaries = [f"{answer[: len(answer) // 2]} and so on" for answer in answers]
    (tmp_path / "summaries.toml").write_text(SUMMARIES)
    rows = [{"text": text, "summary": right} for text, right in zip(SOURCES, summaries, strict=True)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    scores = [scorer.score(right, answer) for right, answer in zip(summaries, answers, strict=True)]
    rouge = {
        key: statistics.fmean(one[kind].fmeasure for one in scores)
        for key, kind in (("rouge_1", "rouge1"), ("rouge_2", "rouge2"), ("rouge_l", "rougeL"))
    }
    assert 0 < rouge["rouge_l"] < 1
    write_gguf(unigram_t5, tmp_path / "student-f32.gguf", name="tiny", type_name="f32")

    monkeypatch.chdir(tmp_path)
    options = ("--task", "summaries.toml", "--data", ".", "--out", "scores", "--json", "--quiet")
    status, out, err = ammd("eval", str(unigram_t5), "student-f32.gguf", *options)
    assert status == 0, err
    models = json.loads(out)["models"]
    assert len(models) == 2
    written = [
        json.loads(line) for line in (tmp_path / "scores" / "task_rows.jsonl").read_text().splitlines()
    ]
    for one in models:
        own = [row for row in written if row["model"] == one["name"]]
        assert [row["text"] for row in own] == answers
        metrics = one["tasks"]["summaries"]["metrics"]
        found = {key: metrics[key]["value"] for key in rouge}
        assert found == pytest.approx(rouge)


def test_another_models_answers_are_refused(task, tiny_checkpoint, build_checkpoint, ammd, tmp_path):
    options = ("--task", task, "--data", ".", "--out", "scores", "--quiet", "--rows", "1")
    assert ammd("eval", str(tiny_checkpoint), *options)[0] == 0
    other = build_checkpoint(tmp_path / "other" / "checkpoint", seed=1)
    status, _, err = ammd("eval", str(other), *options)
    assert status == 3
    assert "holds answers of another model" in err
    assert "hint: name another folder with `--out`" in err
