"""A byte-level BPE tokenizer as tables: tokens, their numbers, and the merges that make one of two.

Such a tokenizer cuts text into words, writes each word's bytes as characters of a 256-letter alphabet, and then
joins, again and again, that pair of neighbours whose merge comes first in its list. The *derivation* of a token is
what stands between its bytes and itself when its own bytes are joined that way.

Read from the tokenizer as transformers has loaded it, since that one numbers the training data. Refused are other
kinds, and rules of cutting that llama.cpp has no name for: a model of a trimmed vocabulary could then be trained,
but not be exported.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ammd.errors import DistillError
from ammd.pre_tokenizer import pre_tokenizer_name

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_UNLIKE = ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk")  # BPE, but other merging
_PROCESSING = {"ByteLevel", "TemplateProcessing"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ByteLevelBpe:
    """Tables of one tokenizer. Tokens are written in the byte alphabet, as in `tokenizer.json`."""

    document: Mapping[str, Any]  # tokenizer.json
    ids: Mapping[str, int]  # of every token, added ones included
    added: frozenset[str]  # tokens that are matched as a whole and never merged
    alphabet: frozenset[str]  # those of the 256 byte characters that are tokens
    ranks: Mapping[tuple[str, str], int]  # place of each merge in the list; the lowest goes first

    def derivation(self, token: str) -> frozenset[str]:
        """Return `token` and all that its bytes become on the way to it.

        A token of a text came about in just this way: while it grew, no merge crossed its borders, so inside them
        each step took the first merge of what lay there, as it does for the token's bytes alone.
        """
        if token in self.added:
            return frozenset({token})
        pieces = list(token)
        found = {token, *pieces}
        while len(pieces) > 1:
            pairs = list(pairwise(pieces))
            rank, place = min((self.ranks.get(pair, len(self.ranks)), at) for at, pair in enumerate(pairs))
            if rank == len(self.ranks):
                break  # no merge leads to it: it stands in texts as a whole word only, or not at all
            pieces[place : place + 2] = ["".join(pairs[place])]
            found.add(pieces[place])
        return frozenset(found)


def read_byte_level_bpe(tokenizer: PreTrainedTokenizerBase) -> ByteLevelBpe:
    """Read the tables of a tokenizer.

    Raises:
        DistillError: It is of another kind, or cuts text into words by a rule that has no name.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    document = json.loads(backend.to_str()) if backend is not None else {}
    model = document.get("model") or {}
    kind = model.get("type") or type(tokenizer).__name__
    decoder = (document.get("decoder") or {}).get("type")
    if kind != "BPE" or decoder != "ByteLevel" or any(model.get(key) for key in _UNLIKE):
        raise _refusal(f"is of kind `{kind}` with decoder `{decoder}`, not a byte-level BPE")
    if pre_tokenizer_name(document) is None:
        raise _refusal("cuts text into words by a rule that llama.cpp has no name for")
    if other := {step["type"] for step in processing_steps(document)} - _PROCESSING:
        raise _refusal(f"finishes its output by `{min(other)}`")
    from tokenizers import pre_tokenizers

    added = {entry["content"]: entry["id"] for entry in document["added_tokens"]}
    alphabet = frozenset(pre_tokenizers.ByteLevel.alphabet()) & model["vocab"].keys()
    for token in model["vocab"].keys() - added.keys():
        if not alphabet.issuperset(token):
            raise _refusal(f"has a token `{token}` that is not spelled in bytes")
    pairs = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model["merges"]]
    return ByteLevelBpe(
        document=document,
        ids={**model["vocab"], **added},
        added=frozenset(added),
        alphabet=alphabet,
        ranks={(left, right): rank for rank, (left, right) in enumerate(pairs)},
    )


def processing_steps(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what a `tokenizer.json` does after cutting, step by step: it may add special tokens."""
    processor = document.get("post_processor")
    if processor is None:
        return []
    return list(processor["processors"]) if processor["type"] == "Sequence" else [processor]


def _refusal(fact: str) -> DistillError:
    return DistillError(
        f"the vocabulary cannot be trimmed: the tokenizer {fact}",
        hint="leave `prepare.vocabulary` out, or take a teacher of the GPT-2, SmolLM, Llama 3 or Qwen 2 kind",
    )
