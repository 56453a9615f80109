"""Bytes of tokens against the text that was encoded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from ammd.distill.token_bytes import token_bytes


def test_bytes_of_a_byte_level_text_are_the_text(
    any_tokenizer: Any, make_texts: Callable[..., list[str]]
) -> None:
    found = token_bytes(any_tokenizer)
    assert not found.adds_space
    for text in make_texts(40, seed=3):
        normalized = any_tokenizer.backend_tokenizer.normalizer
        expected = normalized.normalize_str(text) if normalized else text
        spelled = found.spelled(any_tokenizer.encode(text, add_special_tokens=False))
        if None not in spelled:  # a special token was in it
            assert b"".join(spelled) == expected.encode()


@pytest.mark.parametrize("metaspace", [False, True])
def test_bytes_of_pieces_are_the_text(make_pieces_tokenizer: Callable[..., Any], metaspace: bool) -> None:
    """Words with a space before them, characters that are in the vocabulary, and others byte by byte."""
    tokenizer = make_pieces_tokenizer(metaspace=metaspace)
    found = token_bytes(tokenizer)
    assert found.adds_space
    for text in ("the dog", " the  weather", "dog\u4f60🙂 dog", "a"):
        ids = tokenizer.encode(text, add_special_tokens=False)
        spelled = [token or b"" for token in found.spelled(ids)]
        # One kind does not tell a space at the start from its own.
        assert b"".join(spelled).decode() == tokenizer.decode(ids) == (text.lstrip() if metaspace else text)
    assert len(tokenizer.encode("🙂", add_special_tokens=False)) >= 4


def test_special_tokens_are_no_text(tokenizer: Any) -> None:
    found = token_bytes(tokenizer)
    assert found.spelled(tokenizer.encode("a<|im_end|>b", add_special_tokens=False)) == [b"a", None, b"b"]


def test_tokens_of_another_family_have_no_bytes() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece()
    found = token_bytes(PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]"))
    assert not found.of
