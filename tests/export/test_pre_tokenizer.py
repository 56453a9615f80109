from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from ammd.export.pre_tokenizer import pre_tokenizer_name

LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
DIGITS = pre_tokenizers.Digits(individual_digits=True)


def _split(words: str) -> Any:
    return pre_tokenizers.Split(Regex(words), behavior="isolated")


def _save(tmp_path: Path, steps: list[Any], *, nfc: bool = False, **model: Any) -> Path:
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[], **model))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.mark.parametrize(
    ("steps", "options", "name"),
    [
        ([DIGITS, GPT2], {}, "smollm"),
        ([GPT2], {}, "gpt-2"),
        ([_split(LLAMA3), BYTES], {"ignore_merges": True}, "llama-bpe"),
        ([_split(LLAMA3.replace("{1,3}", "")), BYTES], {"nfc": True}, "qwen2"),
    ],
)
def test_known_rule_has_llama_cpps_name(
    tmp_path: Path, steps: list[Any], options: dict[str, Any], name: str
) -> None:
    assert pre_tokenizer_name(_save(tmp_path, steps, **options)) == name


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
        ([_split(LLAMA3), GPT2], {"ignore_merges": True}),
        ([_split(LLAMA3 + "|x"), BYTES], {"ignore_merges": True}),
        ([_split(LLAMA3.replace("{1,3}", "")), BYTES], {}),
        ([pre_tokenizers.Whitespace()], {}),
    ],
)
def test_rule_that_differs_in_one_point_has_no_name(
    tmp_path: Path, steps: list[Any], options: dict[str, Any]
) -> None:
    assert pre_tokenizer_name(_save(tmp_path, steps, **options)) is None


def test_tokenizer_of_another_kind_has_no_name(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"model": {"type": "Unigram"}}))
    assert pre_tokenizer_name(path) is None


def test_single_step_without_a_sequence_is_understood(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    tokenizer.pre_tokenizer = GPT2
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert pre_tokenizer_name(tmp_path / "tokenizer.json") == "gpt-2"
