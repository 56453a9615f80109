"""Rows of tasks from JSONL."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ammd.errors import AmmdError, DataError, RecipeError
from ammd.task import Task, TaskKind, load_task, packaged_tasks
from ammd.task_data import TaskRow, digest_rows, read_task_rows, task_files


def task(**changed: Any) -> Task:
    return Task.model_validate(
        {
            "name": "mine",
            "version": 1,
            "description": "Mine.",
            "kind": "summarization",
            "data": {"train": "mine/train.jsonl", "test": "mine/test.jsonl"},
            "prompt": "Summarize: {source}",
            "references": "target",
            **changed,
        }
    )


def write(data: Path, rows: list[Any], split: str = "test") -> Path:
    path = data / "mine" / f"{split}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_row_becomes_prompt_references_and_choices(tmp_path: Path) -> None:
    rows = [{"source": "a {b} %s", "target": "x"}, {"source": 7, "target": ["y", "z"]}]
    write(tmp_path, rows)
    assert read_task_rows(task(), "test", data=tmp_path) == (
        TaskRow(prompt="Summarize: a {b} %s", references=("x",), choices=(), line=1),
        TaskRow(prompt="Summarize: 7", references=("y", "z"), choices=(), line=2),
    )


def test_the_first_field_for_references_that_a_row_has_is_taken(tmp_path: Path) -> None:
    write(
        tmp_path,
        [{"source": "a", "all": ["x", "y"], "target": "x"}, {"source": "b", "all": None, "target": "z"}],
    )
    found = read_task_rows(task(references=["all", "target"]), "test", data=tmp_path)
    assert [row.references for row in found] == [("x", "y"), ("z",)]


def test_choices_are_the_tasks_or_the_rows_own(tmp_path: Path) -> None:
    write(tmp_path, [{"source": "a", "options": ["x", "y"], "target": "y"}])
    own = task(kind="choice", choices_field="options")
    assert read_task_rows(own, "test", data=tmp_path)[0].choices == ("x", "y")
    fixed = task(kind="choice", choices=["y", "n"])
    assert read_task_rows(fixed, "test", data=tmp_path)[0].choices == ("y", "n")


def test_perplexity_has_texts_and_no_prompt(tmp_path: Path) -> None:
    write(tmp_path, [{"text": "Once."}])
    plain = task(kind="perplexity", prompt="", references="text")
    assert read_task_rows(plain, "test", data=tmp_path) == (
        TaskRow(prompt="", references=("Once.",), choices=(), line=1),
    )


GOOD = {"source": "a", "target": "x"}


@pytest.mark.parametrize(
    ("row", "changed", "match"),
    [
        ({"src": "a", "target": "x"}, {}, "line 2 has no field `source`"),
        ({"source": "a", "summary": "x"}, {}, "line 2 has no field `target`"),
        ({"source": ["a"], "target": "x"}, {}, "line 2: `source` holds no text"),
        ({"source": True, "target": "x"}, {}, "line 2: `source` holds no text"),
        ({"source": "a", "target": {"x": 1}}, {}, "line 2: `target` holds no text"),
        ({"source": "a", "target": " "}, {}, "line 2: a reference is empty"),
        ({"source": "a", "target": []}, {}, "line 2: a reference is empty"),
        ({"source": "a", "target": ["x", ""]}, {}, "line 2: a reference is empty"),
        ({"source": " ", "target": "x"}, {"prompt": "{source}"}, "line 2: the prompt is empty"),
        ({"source": "\ud800", "target": "x"}, {}, "line 2 holds half of a character"),
        ({"source": "a", "target": "\udc00"}, {}, "line 2 holds half of a character"),
        (
            {"source": "a", "target": "z"},
            {"kind": "choice", "choices": ["x", "y"]},
            "`z` is none of the choices",
        ),
        (GOOD | {"o": ["x", "x"]}, {"kind": "choice", "choices_field": "o"}, "not two or more different"),
        (GOOD | {"o": ["x"]}, {"kind": "choice", "choices_field": "o"}, "not two or more different"),
        ([1], {}, "line 2 is not a JSON object"),
    ],
)
def test_a_row_that_is_not_what_the_task_says_is_named(
    tmp_path: Path, row: Any, changed: dict[str, Any], match: str
) -> None:
    write(tmp_path, [GOOD | {"o": ["x", "y"]}, row])
    with pytest.raises(DataError, match=match):
        read_task_rows(task(**changed), "test", data=tmp_path)


def test_a_missing_field_is_answered_with_those_that_are_there(tmp_path: Path) -> None:
    write(tmp_path, [{"src": "a", "target": "x"}])
    with pytest.raises(DataError) as caught:
        read_task_rows(task(), "test", data=tmp_path)
    assert caught.value.hint == 'its fields are ["src", "target"]'


def test_a_reference_without_an_answer_is_refused(tmp_path: Path) -> None:
    write(tmp_path, [{"source": "1 + 1", "target": "two"}])
    with pytest.raises(DataError, match="finds no answer in the reference `two`"):
        read_task_rows(task(kind="exact", answer_pattern=r"\d+"), "test", data=tmp_path)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data folder at"):
        read_task_rows(task(), "test", data=tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no data file at .*mine/test.jsonl"):
        read_task_rows(task(), "test", data=tmp_path)
    with pytest.raises(RecipeError, match="below a data folder, and none is named"):
        read_task_rows(task(), "test", data=None)
    with pytest.raises(RecipeError, match="task `mine` has no split `dev`, only train, test"):
        read_task_rows(task(), "dev", data=tmp_path)
    write(tmp_path, [])
    with pytest.raises(DataError, match="holds no rows"):
        read_task_rows(task(), "test", data=tmp_path)


def test_rows_are_drawn_by_content_and_fewer_are_a_part_of_more(tmp_path: Path) -> None:
    rows = [{"source": f"text {number}", "target": "x", "id": number} for number in range(60)]
    write(tmp_path, rows)
    few = read_task_rows(task(rows=12), "test", data=tmp_path)
    prompts = {row.prompt for row in few}
    assert len(prompts) == 12
    assert [row.line for row in few] == sorted(row.line for row in few)
    assert prompts != {f"Summarize: text {number}" for number in range(12)}
    fewer = read_task_rows(task(rows=12), "test", data=tmp_path, limit=5)
    assert {row.prompt for row in fewer} < prompts
    assert len(read_task_rows(task(rows=12), "test", data=tmp_path, limit=40)) == 12
    random.Random(0).shuffle(rows)
    write(tmp_path, [row | {"id": None} for row in rows])
    assert {row.prompt for row in read_task_rows(task(rows=12), "test", data=tmp_path)} == prompts
    reworded = read_task_rows(task(rows=12, prompt="{source}"), "test", data=tmp_path)
    assert {f"Summarize: {row.prompt}" for row in reworded} == prompts


def test_a_draw_is_to_judge_on_and_all_rows_are_to_train_on(tmp_path: Path) -> None:
    write(tmp_path, [{"source": str(number), "target": "x"} for number in range(9)], "train")
    assert len(read_task_rows(task(rows=3), "train", data=tmp_path)) == 9


def test_a_digest_tells_file_template_and_rows(tmp_path: Path) -> None:
    path = write(tmp_path, [GOOD, GOOD | {"source": "b"}])
    mine = task()
    rows = read_task_rows(mine, "test", data=tmp_path)
    digest = digest_rows(mine, "test", rows, data=tmp_path)
    assert asdict(digest) == {
        "task": "mine",
        "version": 1,
        "split": "test",
        "source": "mine/test.jsonl",
        "source_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "template_sha256": hashlib.sha256(b"Summarize: {source}").hexdigest(),
        "rows": 2,
        "rows_sha256": hashlib.sha256(
            b'[["Summarize: a", ["x"], []], ["Summarize: b", ["x"], []]]'
        ).hexdigest(),
    }
    write(tmp_path, [GOOD | {"id": 1}, GOOD | {"source": "b"}])  # a field that the task does not read
    other = digest_rows(mine, "test", read_task_rows(mine, "test", data=tmp_path), data=tmp_path)
    assert (other.source_sha256 == digest.source_sha256, other.rows_sha256) == (False, digest.rows_sha256)
    fewer = digest_rows(mine, "test", rows[:1], data=tmp_path)
    assert (fewer.rows, fewer.rows_sha256 == digest.rows_sha256) == (1, False)


def test_the_files_of_a_split_are_known(tmp_path: Path) -> None:
    path = write(tmp_path, [GOOD])
    assert task_files(task(), "test", data=tmp_path) == (path,)


scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=4) | st.just("\ud800")
fields = scalars | st.lists(scalars, max_size=2) | st.dictionaries(st.text(max_size=2), scalars, max_size=2)
generated = st.fixed_dictionaries({}, optional={"source": fields, "target": fields, "o": fields})


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(
    st.lists(generated | scalars, max_size=3),
    st.sampled_from([{}, {"kind": "choice", "choices_field": "o"}, {"kind": "exact", "answer_pattern": "."}]),
)
def test_generated_rows_are_texts_or_refused(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any], changed: dict[str, Any]
) -> None:
    data = tmp_path_factory.mktemp("data")
    write(data, rows)
    try:
        found = read_task_rows(task(**changed), "test", data=data)
    except AmmdError as exc:
        assert str(exc).encode() or exc.hint
        return
    for row in found:
        assert row.prompt.encode()
        assert all(text.strip().encode() for text in row.references)


@pytest.mark.data
@pytest.mark.parametrize("name", packaged_tasks())
def test_packaged_tasks_read_the_data_kit(data_kit: Path, name: str) -> None:
    one = load_task(name)
    for split in one.splits:
        (path,) = task_files(one, split, data=data_kit)
        lines = len(path.read_text(encoding="utf-8").splitlines())
        rows = read_task_rows(one, split, data=data_kit)
        assert len(rows) == (lines if split == "train" or one.rows is None else min(one.rows, lines))
        if one.kind is not TaskKind.PERPLEXITY:
            assert all(row.prompt and "{" + one.prompt_fields[0] + "}" not in row.prompt for row in rows)


@pytest.mark.data
@pytest.mark.parametrize(("name", "most"), [("scitldr", 2), ("super-ni", 2)])
def test_several_references_are_kept(data_kit: Path, name: str, most: int) -> None:
    assert max(len(row.references) for row in read_task_rows(load_task(name), "test", data=data_kit)) >= most


@pytest.mark.parametrize(
    ("name", "text", "answer"),
    [
        ("gsm8k", "6 x 7 = 42 eggs.\n#### 42", "42"),
        ("gsm8k", "It costs $1,250.50.", "1,250.50"),
        ("gsm8k", "The change is -3", "-3"),
        ("bbh", "(B)", "(B)"),
        ("bbh", "Let me think.\nSo the answer is (B).\n", "(B)"),
        ("bbh", "The answer is: Yes", "Yes"),
        ("bbh", "  ] ) >  ", "] ) >"),
        ("bbh", "apple bear cat", "apple bear cat"),
    ],
)
def test_packaged_patterns_find_the_answer(name: str, text: str, answer: str) -> None:
    import re

    found = list(re.finditer(load_task(name).answer_pattern, text))[-1]
    assert found[found.re.groups] == answer
