"""Reading and rendering of data files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ammd.conversations import encode_response, read_conversations, render_prompt
from ammd.distill.checkpoint import load_tokenizer
from ammd.distill.prompts import Example, check_lengths, read_examples, write_examples
from ammd.errors import DataError


def write(path: Path, *rows: object) -> Path:
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows), encoding="utf-8")
    return path


def test_the_three_forms_are_read(tmp_path: Path) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
    ]
    found = read_conversations(
        write(
            tmp_path / "d.jsonl",
            {"prompt": "A"},
            "",
            {"prompt": "B", "response": "b"},
            {"messages": messages},
        )
    )
    assert [item.prompt for item in found] == ["A", "B", "Hi"]
    assert [item.response for item in found] == [None, "b", "Hello."]
    assert [item.line for item in found] == [1, 3, 4]
    assert found[2].messages[0]["role"] == "system"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{not json", "line 2 is not JSON"),
        ('"text"', "line 2 is not a JSON object"),
        ({"question": "?"}, "line 2 has no `prompt` text"),
        ({"prompt": "  "}, "line 2 has no `prompt` text"),
        ({"prompt": "A", "response": 3}, "line 2 has a `response` that is not text"),
        ({"prompt": "A", "response": " "}, "line 2 has an empty response"),
        (
            {"messages": [{"role": "user", "content": "A"}, {"role": "assistant", "content": ""}]},
            "line 2 has an empty response",
        ),
        ({"messages": []}, "line 2: `messages` is not a list"),
        ({"messages": [{"role": "user"}]}, "line 2: `messages` is not a list"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "line 2: `messages` has no user message"),
    ],
)
def test_a_malformed_line_is_named_by_its_number(tmp_path: Path, row: object, message: str) -> None:
    path = write(tmp_path / "d.jsonl", {"prompt": "fine"}, row)
    with pytest.raises(DataError, match=message):
        read_conversations(path)


def test_missing_and_empty_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data file at"):
        read_conversations(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="holds no prompts"):
        read_conversations(write(tmp_path / "empty.jsonl", "", " "))
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="cannot read"):
        read_conversations(tmp_path / "binary.jsonl")


def test_prompt_is_rendered_by_the_models_own_template(tiny_checkpoint: Path) -> None:
    tokenizer = load_tokenizer(tiny_checkpoint)
    ids = render_prompt(tokenizer, [{"role": "user", "content": "in 12"}])
    assert tokenizer.decode(list(ids)) == "<|im_start|>user\nin 12<|im_end|>\n<|im_start|>assistant\n"
    assert ids[0] == tokenizer.bos_token_id
    assert ids.count(tokenizer.bos_token_id) == 2  # the template's own, none added


def test_response_ends_with_the_end_token_unless_cut(tiny_checkpoint: Path) -> None:
    tokenizer = load_tokenizer(tiny_checkpoint)
    whole = encode_response(tokenizer, "the", max_tokens=10)
    assert whole[-1] == tokenizer.eos_token_id
    assert (
        encode_response(tokenizer, "the the the", max_tokens=2)
        == encode_response(tokenizer, "the the the", max_tokens=10)[:2]
    )


def test_a_prompt_longer_than_the_context_is_named(tmp_path: Path) -> None:
    conversations = read_conversations(write(tmp_path / "d.jsonl", {"prompt": "A"}, {"prompt": "B"}))
    with pytest.raises(DataError, match="line 2 has 9 tokens, the model's context leaves room for 5"):
        check_lengths([(1,) * 5, (1,) * 9], conversations, path=tmp_path / "d.jsonl", room=5)


def test_examples_survive_the_file(tmp_path: Path) -> None:
    example = Example(prompt="Ä\u2028", response="b\n", prompt_ids=(1, 2), response_ids=(3,))
    write_examples(tmp_path / "e.jsonl", [example], references=["ref"])
    assert read_examples(tmp_path / "e.jsonl") == [example]
    assert json.loads((tmp_path / "e.jsonl").read_text(encoding="utf-8").split("\n")[0])["reference"] == "ref"
    with pytest.raises(DataError, match="is not a file of examples"):
        read_examples(write(tmp_path / "bad.jsonl", {"prompt": "A"}))
