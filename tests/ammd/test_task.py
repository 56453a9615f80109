"""What a task's file may say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ammd.errors import RecipeError
from ammd.task import Task, load_task, packaged_tasks
from ammd.task_template import fill

MINIMAL = {
    "name": "mine",
    "version": 1,
    "description": "Mine.",
    "kind": "summarization",
    "data": {"test": "mine/test.jsonl"},
    "prompt": "Summarize: {source}",
    "references": "target",
}


def faults_of(**changed: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        Task.model_validate(MINIMAL | changed)
    return str(caught.value)


def test_every_packaged_task_is_one_and_has_the_name_of_its_file() -> None:
    assert packaged_tasks() == (
        "bbh",
        "dolly",
        "gsm8k",
        "qmsum",
        "scitldr",
        "self-instruct",
        "strategyqa",
        "super-ni",
        "tatoeba",
        "vicuna",
        "wikitext2",
        "xquad",
    )
    for name in packaged_tasks():
        assert load_task(name).name == name


@pytest.mark.parametrize("name", ["nothing", "../tasks/dolly", "", "a\0", "no.toml", "x" * 5000 + ".toml"])
def test_an_unknown_task_is_answered_with_the_known_ones(name: str) -> None:
    with pytest.raises(RecipeError, match="no task") as caught:
        load_task(name)
    assert "scitldr" in caught.value.hint


@pytest.mark.parametrize(
    "prompt",
    [
        "{source.__class__}",
        "{source.__init__.__globals__}",
        "{_source}",
        "{source!r}",
        "{source:>10}",
        "{source[0]}",
        "{}",
        "{0.a}{}",
        "{source",
        "source}",
        "no field",
        "{{source}}",
    ],
)
def test_a_prompt_takes_plain_fields_and_nothing_else(prompt: str) -> None:
    assert "prompt" in faults_of(prompt=prompt)


@pytest.mark.parametrize("path", ["../x.jsonl", "/etc/passwd", "a/../../x", "", "C:x", "a\\b"])
def test_data_stay_within_the_data_folder(path: str) -> None:
    assert "unsafe file name" in faults_of(data={"test": path})


@pytest.mark.parametrize("name", ["../x", "..", "a/..", "a/b/c", "/a", "a\n"])
def test_a_hub_id_is_no_path(name: str) -> None:
    assert "hub.id" in faults_of(hub={"id": name, "revision": "0" * 40})


@pytest.mark.parametrize("revision", ["main", "", "0" * 39, "G" * 40])
def test_a_revision_is_a_commit(revision: str) -> None:
    assert "hub.revision" in faults_of(hub={"id": "a/b", "revision": revision})


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"kind": "choice"}, "choices"),
        ({"kind": "choice", "choices": ["yes"]}, "two or more different ones"),
        ({"kind": "choice", "choices": ["a", "a"]}, "two or more different ones"),
        ({"choices": ["a", "b"]}, "go with kind"),
        ({"kind": "choice", "choices_field": "a[0]"}, "no plain name of a field"),
        ({"kind": "exact"}, "needs `answer_pattern`"),
        ({"kind": "exact", "answer_pattern": "("}, "no regular expression"),
        ({"data": {}}, "neither `data` nor `hub`"),
        ({"references": []}, "references"),
        ({"references": "a b"}, "no plain name of a field"),
        ({"splits": 1}, "Extra inputs"),
    ],
)
def test_a_contradiction_is_told(changed: dict[str, Any], text: str) -> None:
    assert text in faults_of(**changed)


def test_a_task_says_which_splits_it_has() -> None:
    hub = {"id": "a/b", "revision": "0" * 40, "splits": {"train": "train", "test": "dev"}}
    assert Task.model_validate(MINIMAL).splits == ("test",)
    assert Task.model_validate(MINIMAL | {"hub": hub}).splits == ("train", "test")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("name =", "cannot read the task"),
        ('name = "x"', "`version` Field required"),
        ("a = " + "[" * 5000, "cannot read the task"),
    ],
)
def test_a_file_that_is_no_task_is_refused_in_one_line(tmp_path: Path, text: str, match: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError, match=match):
        load_task(str(path))


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.text(), st.text(), st.text(alphabet="{}[]!:.%$\\\n\u2028\0é"))
def test_what_a_row_holds_stands_in_the_prompt_as_it_is(question: str, answer: str, odd: str) -> None:
    row = {"q": question + odd, "deep": {"a": odd + answer}}
    filled = fill("{{Q}} {q}\n{deep.a}{q}", row)
    assert filled == "{Q} " + question + odd + "\n" + odd + answer + question + odd
