"""Cut a tokenizer and its models down to the tokens that are kept (`vocabulary` says which).

Kept tokens are numbered anew from 0 in their old order. A model loses the other rows of its embedding and its head
and is otherwise untouched, so its softmax over the rows that stay *is* its old distribution, renormalised on the
kept tokens. Every place that names a token by number is renumbered or refused: the tokenizer's added tokens and
template of special tokens, the end, padding and other `..._token_id` of config.json and generation_config.json.

The trimmed tokenizer is saved as one `tokenizer.json` under transformers' class without rules of its own. The other
forms of a vocabulary (`vocab.json`, `merges.txt`) would contradict it and are not written.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ammd.errors import DistillError

from .byte_level_bpe import ByteLevelBpe, processing_steps
from .checkpoint import copy_in_dtype, save_checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Keys of generation_config.json that name tokens in other forms than one number or a list of numbers.
_OTHER_NAMES = (
    "bad_words_ids",
    "begin_suppress_tokens",
    "forced_decoder_ids",
    "sequence_bias",
    "suppress_tokens",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrimmedTokenizer:
    """A tokenizer of the kept tokens, and how the full one's numbers translate to its."""

    tokenizer: PreTrainedTokenizerBase
    new_ids: Mapping[int, int]  # of the kept tokens
    spellings: Mapping[int, tuple[int, ...]]  # of each other token: what its bytes are merged to now

    def respell(self, ids: Sequence[int], *, max_tokens: int) -> tuple[int, ...]:
        """Return the same bytes in new ids, token by token, cut at `max_tokens`.

        A sampled text need not be cut as a tokenizer would cut it, and may end inside a character, so nothing goes
        through text here. A row of the head that no token has stands for no bytes; of nothing else, the end remains.
        """
        spelled = [
            new
            for old in ids
            for new in ((self.new_ids[old],) if old in self.new_ids else self.spellings.get(old, ()))
        ]
        return tuple(spelled[:max_tokens]) or (int(self.tokenizer.eos_token_id),)

    def keeps(self, ids: Sequence[int]) -> bool:
        """Return whether `ids` are all kept tokens."""
        return self.new_ids.keys() >= set(ids)

    def respelled_share(self, texts: Iterable[Sequence[int]]) -> float:
        """Return which share of the tokens of `texts`, in full ids, is spelled in several tokens now."""
        is_kept = [token_id in self.new_ids for ids in texts for token_id in ids]
        return is_kept.count(False) / len(is_kept)


def trim_tokenizer(
    tokenizer: PreTrainedTokenizerBase, bpe: ByteLevelBpe, kept: Sequence[int]
) -> TrimmedTokenizer:
    """Return `tokenizer` with the tokens `kept`, ascending ids, and no other.

    Args:
        tokenizer: The full one.
        bpe: Its tables.
        kept: With every token its derivation, and all added tokens and bytes.

    Raises:
        DistillError: The `tokenizers` library numbers the kept tokens otherwise.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    new_ids = {old: new for new, old in enumerate(kept)}
    backend = Tokenizer.from_str(json.dumps(_trim_document(bpe, new_ids)))
    numbers = {token: new_ids[token_id] for token, token_id in bpe.ids.items() if token_id in new_ids}
    if backend.get_vocab(with_added_tokens=True) != numbers:
        raise DistillError(
            "the trimmed tokens cannot be numbered in their old order: added tokens lie between others",
            hint="leave `prepare.vocabulary` out for this teacher",
        )
    trimmed = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **tokenizer.special_tokens_map,
        model_max_length=tokenizer.model_max_length,
        padding_side=tokenizer.padding_side,
        model_input_names=tokenizer.model_input_names,
        clean_up_tokenization_spaces=False,
    )
    trimmed.chat_template = tokenizer.chat_template
    return TrimmedTokenizer(
        tokenizer=trimmed,
        new_ids=new_ids,
        spellings={
            token_id: tuple(piece.id for piece in backend.model.tokenize(token))
            for token, token_id in bpe.ids.items()
            if token_id not in new_ids
        },
    )


def named_token_ids(model: PreTrainedModel) -> set[int]:
    """Return the tokens that the model's configuration names by number.

    Raises:
        DistillError: It names some in a form that cannot be renumbered.
    """
    for config in _configs(model):
        for key in _OTHER_NAMES:
            if getattr(config, key, None):
                raise DistillError(
                    f"the vocabulary cannot be trimmed: the model's `{key}` names tokens by number",
                    hint=f"remove `{key}` from generation_config.json, or leave `prepare.vocabulary` out",
                )
    return {number for _, _, numbers in _named(model) for number in numbers}


def trim_model(model: PreTrainedModel, new_ids: Mapping[int, int]) -> None:
    """Cut embedding and head of `model`, in place, to the rows of the kept tokens.

    Args:
        model: A causal language model with a plain head.
        new_ids: New number of each kept token, in the order of the old ones.

    Raises:
        DistillError: Its configuration names a token that is not kept.
    """
    for config, key, numbers in list(_named(model)):
        for number in numbers:
            if number not in new_ids:
                raise DistillError(f"the model's `{key}` is `{number}`, which is no token of its tokenizer")
        renumbered = [new_ids[number] for number in numbers]
        setattr(config, key, renumbered if isinstance(getattr(config, key), list) else renumbered[0])
    embedding: Any = model.get_input_embeddings()
    head: Any = model.get_output_embeddings()
    tied = head.weight is embedding.weight
    embedding.weight = _rows(embedding.weight, new_ids)
    head.weight = embedding.weight if tied else _rows(head.weight, new_ids)
    embedding.num_embeddings = head.out_features = len(new_ids)
    if embedding.padding_idx is not None:
        embedding.padding_idx = new_ids.get(embedding.padding_idx)
    for part in (model.config, model, model.get_decoder()):
        if hasattr(part, "vocab_size"):
            part.vocab_size = len(new_ids)


def replace_checkpoint(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write `model`, in the dtype of the checkpoint in `folder`, and `tokenizer` in its place."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    name = config.get("dtype") or config.get("torch_dtype") or "float32"
    stored = copy_in_dtype(model, getattr(torch, name))
    # Not over the old files: they may be links to the source's own.
    shutil.rmtree(folder)
    save_checkpoint(stored, tokenizer, folder)


def _trim_document(bpe: ByteLevelBpe, new_ids: Mapping[int, int]) -> dict[str, Any]:
    """Return `tokenizer.json` with the kept tokens in new numbers."""
    document: dict[str, Any] = json.loads(json.dumps(bpe.document))
    document["truncation"] = document["padding"] = None  # left by the last call, not part of the tokenizer
    model = document["model"]
    model["vocab"] = {
        token: new_ids[token_id] for token, token_id in model["vocab"].items() if token_id in new_ids
    }
    model["merges"] = [
        [left, right]
        for left, right in sorted(bpe.ranks, key=bpe.ranks.__getitem__)
        if {left, right, left + right} <= model["vocab"].keys()
    ]
    for token in document["added_tokens"]:
        token["id"] = new_ids[token["id"]]
    for step in processing_steps(document):
        for special in step.get("special_tokens", {}).values():
            special["ids"] = [new_ids[token_id] for token_id in special["ids"]]
    return document


def _configs(model: PreTrainedModel) -> list[Any]:
    return [config for config in (model.config, model.generation_config) if config is not None]


def _named(model: PreTrainedModel) -> Iterator[tuple[Any, str, list[int]]]:
    """Yield each configuration with a key that names tokens, and their numbers; a negative one names none."""
    for config in _configs(model):
        for key, value in config.to_dict().items():
            numbers = value if isinstance(value, list) else [value]
            if key.endswith("_token_id") and value not in (None, []) and min(numbers) >= 0:
                yield config, key, numbers


def _rows(weight: torch.nn.Parameter, new_ids: Mapping[int, int]) -> torch.nn.Parameter:
    kept = weight.detach()[list(new_ids)].clone()
    return torch.nn.Parameter(kept, requires_grad=weight.requires_grad)
