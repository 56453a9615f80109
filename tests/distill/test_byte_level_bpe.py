"""Derivations against the tokenizers library, and refusals."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ammd.distill.byte_level_bpe import read_byte_level_bpe
from ammd.errors import DistillError


def test_a_derivation_is_enough_to_reach_its_token_and_nothing_in_it_is_spare(any_tokenizer: Any) -> None:
    """A tokenizer of the derivation alone makes the token of its bytes; without any one part it does not."""
    from tokenizers import models

    bpe = read_byte_level_bpe(any_tokenizer)
    in_order = sorted(bpe.ranks, key=lambda pair: bpe.ranks[pair])

    def merge(token: str, parts: frozenset[str]) -> list[str]:
        vocabulary = {part: number for number, part in enumerate(sorted(parts))}
        kept = [(left, right) for left, right in in_order if {left, right, left + right} <= parts]
        return [piece.value for piece in models.BPE(vocab=vocabulary, merges=kept).tokenize(token)]

    tokens = sorted(bpe.ids.keys() - bpe.added, key=len)[-25:]
    for token in tokens:
        parts = bpe.derivation(token)
        assert merge(token, parts) == [token]
        if len(bpe.ranks) < len(bpe.ids):  # where each token has one merge, every part is needed
            for part in parts - bpe.alphabet - {token}:
                assert merge(token, parts - {part}) != [token]


def test_an_added_token_is_its_own_derivation(tokenizer: Any) -> None:
    assert read_byte_level_bpe(tokenizer).derivation("<|im_end|>") == {"<|im_end|>"}


def change(tokenizer: Any, **changes: Any) -> Any:
    """Return a copy of `tokenizer` whose `tokenizer.json` has other parts."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    document = json.loads(tokenizer.backend_tokenizer.to_str())
    document["model"] |= changes.pop("model", {})
    backend = Tokenizer.from_str(json.dumps({**document, **changes}))
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": {"dropout": 0.1}}, "is of kind `BPE` with decoder `ByteLevel`, not a byte-level BPE"),
        ({"decoder": {"type": "Fuse"}}, "is of kind `BPE` with decoder `Fuse`"),
        (
            {"pre_tokenizer": {"type": "Whitespace"}},
            "cuts text into words by a rule that llama.cpp has no name for",
        ),
        (
            {
                "post_processor": {
                    "type": "RobertaProcessing",
                    "sep": ["<|im_end|>", 2],
                    "cls": ["<|im_start|>", 1],
                    "trim_offsets": True,
                    "add_prefix_space": False,
                }
            },
            "finishes its output by `RobertaProcessing`",
        ),
    ],
)
def test_a_tokenizer_of_another_kind_is_refused(tokenizer: Any, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(DistillError, match="the vocabulary cannot be trimmed: the tokenizer") as caught:
        read_byte_level_bpe(change(tokenizer, **changes))
    assert said in str(caught.value)
    assert "leave `prepare.vocabulary` out" in caught.value.hint


def test_a_unigram_tokenizer_is_refused() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0))
    with pytest.raises(DistillError, match="is of kind `Unigram` with decoder `None`"):
        read_byte_level_bpe(PreTrainedTokenizerFast(tokenizer_object=backend))


def test_a_token_that_no_bytes_spell_is_refused(tokenizer: Any) -> None:
    document = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = {**document["model"]["vocab"], "→": len(document["model"]["vocab"])}
    with pytest.raises(DistillError, match="has a token `→` that is not spelled in bytes"):
        read_byte_level_bpe(change(tokenizer, model={"vocab": vocabulary}))
