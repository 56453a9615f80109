"""llama.cpp goes by a model's name where special tokens swallow white space; the name goes with the tokenizer."""

from __future__ import annotations

from typing import Any

import pytest

from ammd.errors import ExportError
from ammd.export.swallowed_space import name_in_file


def _token(text: str, **flags: bool) -> dict[str, Any]:
    return {"content": text, "special": True, **flags}


PHI_3 = [_token("<s>"), _token("<unk>"), _token("<|endoftext|>"), _token("<|user|>", rstrip=True)]


@pytest.mark.parametrize(
    ("name", "tokens", "written"),
    [
        ("student", PHI_3, "phi-3 student"),
        ("Phi-3-mini", PHI_3, "Phi-3-mini"),
        ("student", [_token("<s>"), _token("<|user|>")], "student"),
        ("my-phi3-student", [_token("<|user|>")], "my-phi 3-student"),
        ("student", [], "student"),
    ],
)
def test_the_name_says_what_the_tokenizer_does(name: str, tokens: list[dict[str, Any]], written: str) -> None:
    assert name_in_file(name, {"added_tokens": tokens}) == written


@pytest.mark.parametrize(
    ("tokens", "named"),
    [
        ([*PHI_3, _token("<|end|>")], r"<\|user\|>"),
        ([_token("<mask>", lstrip=True)], "<mask>"),
        ([_token("<s>", rstrip=True)], "<s>"),
    ],
)
def test_what_no_name_can_say_is_refused(tokens: list[dict[str, Any]], named: str) -> None:
    with pytest.raises(ExportError, match=f"lets the special token `{named}` swallow white space"):
        name_in_file("student", {"added_tokens": tokens})
