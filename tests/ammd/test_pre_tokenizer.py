from __future__ import annotations

import json
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from ammd.pre_tokenizer import pre_tokenizer_name

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)  # as llama.cpp quotes it beside its own (llama-vocab.cpp)
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
DIGITS = pre_tokenizers.Digits(individual_digits=True)


def _split(words: str) -> Any:
    return pre_tokenizers.Split(Regex(words), behavior="isolated")


def _kept(words: str, *, invert: bool = True) -> Any:
    """Cut as tokenizers that came from tiktoken do: what lies between the words is removed, and nothing does."""
    return pre_tokenizers.Split(Regex(words), behavior="removed", invert=invert)


def _document(steps: list[Any], *, nfc: bool = False, **model: Any) -> dict[str, Any]:
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[], **model))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    document: dict[str, Any] = json.loads(tokenizer.to_str())
    return document


@pytest.mark.parametrize(
    ("steps", "options", "name"),
    [
        ([DIGITS, GPT2], {}, "smollm"),
        ([GPT2], {}, "gpt-2"),
        ([_split(LLAMA3), BYTES], {"ignore_merges": True}, "llama-bpe"),
        ([_split(LLAMA3.replace("{1,3}", "")), BYTES], {"nfc": True}, "qwen2"),
        ([_split(O200K), BYTES], {}, "gpt-4o"),
        ([_kept(O200K), BYTES], {}, "gpt-4o"),
    ],
)
def test_known_rule_has_llama_cpps_name(steps: list[Any], options: dict[str, Any], name: str) -> None:
    assert pre_tokenizer_name(_document(steps, **options)) == name


@pytest.mark.parametrize(
    ("steps", "options"),
    [
        ([pre_tokenizers.Digits(individual_digits=False), GPT2], {}),
        ([DIGITS, pre_tokenizers.ByteLevel(add_prefix_space=True)], {}),
        ([DIGITS, BYTES], {}),
        ([GPT2, DIGITS], {}),
        ([DIGITS, GPT2], {"nfc": True}),
        ([DIGITS, GPT2], {"ignore_merges": True}),
        ([DIGITS, GPT2], {"byte_fallback": True}),
        ([_split(LLAMA3), BYTES], {}),
        ([_kept(O200K, invert=False), BYTES], {}),
        ([_split(LLAMA3), GPT2], {"ignore_merges": True}),
        ([_split(LLAMA3 + "|x"), BYTES], {"ignore_merges": True}),
        ([_split(LLAMA3.replace("{1,3}", "")), BYTES], {}),
        ([pre_tokenizers.Whitespace()], {}),
    ],
)
def test_rule_that_differs_in_one_point_has_no_name(steps: list[Any], options: dict[str, Any]) -> None:
    assert pre_tokenizer_name(_document(steps, **options)) is None


def test_tokenizer_of_another_kind_has_no_name() -> None:
    assert pre_tokenizer_name({"model": {"type": "Unigram"}}) is None


def test_single_step_without_a_sequence_is_understood() -> None:
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    tokenizer.pre_tokenizer = GPT2
    assert pre_tokenizer_name(json.loads(tokenizer.to_str())) == "gpt-2"
