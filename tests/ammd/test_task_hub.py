"""Rows of tasks from data sets in the hub's layout: local copies, written here as the hub has them."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from ammd.errors import DataError, RecipeError
from ammd.task import Task
from ammd.task_data import digest_rows, read_task_rows, task_files

pytest.importorskip("datasets", reason="the extra `hub` is not installed")
COMMIT = "0123456789" * 4
DIALOGUES = [
    {"id": "1", "dialogue": "A: {hi}\r\nB: hello", "summary": "A greets B."},
    {"id": "2", "dialogue": "C: bye", "summary": "C leaves."},
]
SENTENCES = [
    {"translation": {"de": "Guten Morgen!", "en": "Good morning!"}},
    {"translation": {"de": "Danke.", "en": "Thank you."}},
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the developer's own cache, or asks a hub."""
    for library in (
        "datasets.config",
        "huggingface_hub.constants",
    ):  # the variable is read when they are imported
        monkeypatch.setattr(f"{library}.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))


def chats(**changed: Any) -> Task:
    hub = {"id": "knkarthick/samsum", "revision": COMMIT} | changed
    return Task.model_validate(
        {
            "name": "samsum",
            "version": 1,
            "description": "Chats.",
            "kind": "summarization",
            "hub": hub,
            "prompt": "{dialogue}\n\nSummarize.",
            "references": "summary",
        }
    )


def talks() -> Task:
    return Task.model_validate(
        {
            "name": "iwslt2017",
            "version": 1,
            "description": "Talks.",
            "kind": "translation",
            "hub": {"id": "IWSLT/iwslt2017", "revision": COMMIT, "config": "iwslt2017-en-de"},
            "prompt": "Translate into German: {translation.en}",
            "references": "translation.de",
        }
    )


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def write_chats(data: Path) -> Path:
    folder = data / "knkarthick" / "samsum"
    folder.mkdir(parents=True)
    for split in ("train", "validation", "test"):
        lines = [json.dumps(row) for row in DIALOGUES]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / ".gitattributes").write_text("*.parquet filter=lfs\n", encoding="utf-8")
    return folder


def test_jsonl_shards_of_a_copy_are_read_by_the_hubs_names_of_splits(tmp_path: Path) -> None:
    write_chats(tmp_path)
    found = read_task_rows(chats(), "dev", data=tmp_path)
    assert [row.prompt for row in found] == ["A: {hi}\r\nB: hello\n\nSummarize.", "C: bye\n\nSummarize."]
    assert [row.references for row in found] == [("A greets B.",), ("C leaves.",)]


def test_parquet_shards_of_one_configuration_are_read_with_fields_within_fields(tmp_path: Path) -> None:
    folder = tmp_path / "IWSLT" / "iwslt2017"
    write_parquet(folder / "iwslt2017-en-de" / "test-00000-of-00002.parquet", SENTENCES[:1])
    write_parquet(folder / "iwslt2017-en-de" / "test-00001-of-00002.parquet", SENTENCES[1:])
    write_parquet(folder / "iwslt2017-en-fr" / "test-00000-of-00001.parquet", [{"translation": {"en": "x"}}])
    (folder / "README.md").write_text(
        "---\nconfigs:\n"
        + "".join(
            f"- config_name: {name}\n  data_files:\n  - split: test\n    path: {name}/test-*\n"
            for name in ("iwslt2017-en-de", "iwslt2017-en-fr")
        )
        + "---\n",
        encoding="utf-8",
    )
    found = read_task_rows(talks(), "test", data=tmp_path)
    assert [(row.prompt, row.references) for row in found] == [
        ("Translate into German: Good morning!", ("Guten Morgen!",)),
        ("Translate into German: Thank you.", ("Danke.",)),
    ]


def test_a_copy_that_changed_is_read_anew(tmp_path: Path) -> None:
    folder = write_chats(tmp_path)
    before = digest_rows(chats(), "test", read_task_rows(chats(), "test", data=tmp_path), data=tmp_path)
    (folder / "test.jsonl").write_text(json.dumps(DIALOGUES[1]) + "\n", encoding="utf-8")
    rows = read_task_rows(chats(), "test", data=tmp_path)
    after = digest_rows(chats(), "test", rows, data=tmp_path)
    assert [row.references for row in rows] == [("C leaves.",)]
    assert before.rows_sha256 != after.rows_sha256
    assert before.source_sha256 != after.source_sha256


def test_the_files_of_a_copy_are_those_of_the_data_set(tmp_path: Path) -> None:
    folder = write_chats(tmp_path)
    files = task_files(chats(), "test", data=tmp_path)
    assert files == tuple(folder / f"{split}.jsonl" for split in ("test", "train", "validation"))
    digest = digest_rows(chats(), "test", read_task_rows(chats(), "test", data=tmp_path), data=tmp_path)
    hashes = "\n".join(hashlib.sha256(path.read_bytes()).hexdigest() for path in files)
    assert digest.source == f"hub:knkarthick/samsum@{COMMIT}"
    assert digest.source_sha256 == hashlib.sha256(hashes.encode()).hexdigest()


def test_a_row_of_a_copy_that_is_not_what_the_task_says_is_named(tmp_path: Path) -> None:
    folder = write_chats(tmp_path)
    (folder / "test.jsonl").write_text(
        "".join(json.dumps(DIALOGUES[0] | {"summary": text}) + "\n" for text in ("fine", " ")),
        encoding="utf-8",
    )
    with pytest.raises(DataError, match="split `test` of `knkarthick/samsum` row 2: a reference is empty"):
        read_task_rows(chats(), "test", data=tmp_path)


def test_a_split_that_a_copy_lacks_is_told_in_one_line(tmp_path: Path) -> None:
    folder = write_chats(tmp_path)
    with pytest.raises(DataError, match=r"cannot read split `heldout` of `.*samsum`: ") as caught:
        read_task_rows(chats(splits={"test": "heldout"}), "test", data=tmp_path)
    assert "\n" not in str(caught.value)
    (folder / "test.jsonl").write_text('{"a": ', encoding="utf-8")
    with pytest.raises(DataError, match="cannot read split `test`"):
        read_task_rows(chats(), "test", data=tmp_path)


def test_a_copys_own_code_is_not_run(tmp_path: Path) -> None:
    folder = write_chats(tmp_path)
    (folder / "samsum.py").write_text(
        f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n", encoding="utf-8"
    )
    with pytest.raises(DataError, match="scripts are no longer supported"):
        read_task_rows(chats(), "test", data=tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_data_set_that_cannot_be_fetched_is_told_with_the_way_out(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=f"cannot read split `test` of `knkarthick/samsum` at `{COMMIT}`"
    ) as caught:
        read_task_rows(chats(), "test", data=tmp_path)
    assert "put a copy of it into the data folder, as `knkarthick/samsum`" in caught.value.hint


def test_without_the_library_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_chats(tmp_path)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        RecipeError, match="is read by the package `datasets`, which is not installed"
    ) as caught:
        read_task_rows(chats(), "test", data=tmp_path)
    assert caught.value.hint == "`pip install 'ammd[hub]'`"
