from __future__ import annotations

import json
from pathlib import Path

import pytest

from ammd.errors import ArtifactError
from ammd.runtime.heldout import load_heldout

ROW = {"prompt": "p", "response": "r", "prompt_ids": [1, 2], "response_ids": [3]}


def test_rows_are_read_up_to_the_limit(tmp_path: Path) -> None:
    path = write(tmp_path, ROW, {**ROW, "reference": "x"}, ROW)
    rows = load_heldout(path, limit=2)
    assert [row.reference for row in rows] == [None, "x"]
    assert rows[0].token_ids == (1, 2, 3)


@pytest.mark.parametrize(
    ("row", "fact"),
    [
        ({**ROW, "prompt_ids": []}, "empty prompt or response"),
        ({"prompt": "p"}, "KeyError 'response'"),
        ({**ROW, "response_ids": ["a"]}, "ValueError"),
        ([1], "TypeError"),
    ],
)
def test_bad_line_is_named(tmp_path: Path, row: object, fact: str) -> None:
    with pytest.raises(ArtifactError, match=rf"heldout.jsonl:2.*{fact}"):
        load_heldout(write(tmp_path, ROW, row), limit=9)


def test_line_that_is_no_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "heldout.jsonl"
    path.write_text("{oops\n")
    with pytest.raises(ArtifactError, match=r"heldout.jsonl:1.*JSONDecodeError"):
        load_heldout(path, limit=1)


def test_empty_and_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="holds no prompts"):
        load_heldout(write(tmp_path), limit=1)
    with pytest.raises(ArtifactError, match="cannot read"):
        load_heldout(tmp_path / "gone.jsonl", limit=1)


def write(folder: Path, *rows: object) -> Path:
    path = folder / "heldout.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
