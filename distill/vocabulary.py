"""Which tokens stay when a vocabulary is trimmed.

A small model's embedding is a third to two thirds of its weights, and most rows of a vocabulary made for all the
world's text and code are never read by the one task that a student learns. Kept are

    special and added tokens, those that the model's configuration names, and the single bytes,
    every token in the training texts and in the files of `prepare.vocabulary.texts`,
    every token that is spelled in the letters of the listed languages,
    and the derivation of each of these (`byte_level_bpe`): what its bytes are merged to on the way to it.

A merge stays when both its parts and its result do.

Then counted text is cut into the same tokens as before. Merging takes, step by step, the first applicable merge of
the list. Each merge that the full tokenizer takes makes a part of a token of the result, so it lies in that token's
derivation and stays. It was first among all applicable merges, so it is first among the fewer that are left, and the
trimmed tokenizer takes it too; and where the full one finds nothing more to merge, neither does the trimmed one. A word
that a tokenizer of Llama 3's kind takes as one token without merging is itself a token of the counted text. Any other
text is still spelled, at worst in bytes.

`max_tokens` keeps the most frequent of the tokens that may go, by how often they occur or are passed on the way to one
that does; of equals, the one with the lower number, which tokenizers learn first.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ammd.conversations import encode_response, read_conversations, render_prompt
from ammd.errors import DataError, DistillError

from .alphabets import Alphabet
from .byte_level_bpe import ByteLevelBpe, read_byte_level_bpe
from .trimming import named_token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from .vocabulary_settings import VocabularySettings

_LINES_AT_ONCE = 4096
# Kernels take a head's rows in groups of 4, 8 or 16 (llama.cpp's repacked ones, by processor) and a matrix that does
# not divide goes without them, so a few tokens more are kept.
_ROWS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptTokens:
    """The choice. A kept token's new number is its place in `ids`."""

    ids: tuple[int, ...]  # in the full tokenizer, ascending
    kept_for: Mapping[str, int]  # how many tokens stay for which reason, each under the first that holds
    counted_tokens: int  # in training data and further texts, cut by the full tokenizer
    respelled_tokens: int  # of these: no longer one token


class VocabularyPlan:
    """What can be said before the teacher has written: what cannot go, and what the further texts use."""

    def __init__(
        self, settings: VocabularySettings, *, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        """Read the teacher's tokenizer and the further texts.

        Raises:
            DistillError: The tokenizer or the model's configuration cannot be trimmed, or `max_tokens` is too few.
            DataError: A file of `texts` cannot be read.
        """
        self.bpe = read_byte_level_bpe(tokenizer)
        self._tokens = {token_id: token for token, token_id in self.bpe.ids.items()}
        self._special = set(self.bpe.added)
        for token_id in named_token_ids(model):
            if token_id not in self._tokens:
                raise DistillError(
                    f"the model's configuration names token `{token_id}`, which its tokenizer does not have",
                    hint="mend config.json or generation_config.json, or leave `prepare.vocabulary` out",
                )
            self._special.add(self._tokens[token_id])
        self._fixed = self._special | self.bpe.alphabet
        if settings.max_tokens is not None and settings.max_tokens < len(self._fixed):
            raise DistillError(
                f"`prepare.vocabulary.max_tokens` = `{settings.max_tokens}` is too few: special tokens and "
                f"single bytes alone are {len(self._fixed)}",
                hint="some thousands more than these keep texts short",
            )
        self._max_tokens = len(self.bpe.ids) if settings.max_tokens is None else settings.max_tokens
        self._of_language = _spelled_in(self.bpe, settings.languages)
        self._texts = count_texts(tokenizer, settings.texts)

    def choose(self, training: Counter[int]) -> KeptTokens:
        """Choose what stays, given how often each id occurs in prompts and responses of the training data."""
        counts = [self._by_token(training), self._by_token(self._texts)]
        counted = counts[0] + counts[1]
        derivations = {token: self.bpe.derivation(token) for token in counted.keys() | self._of_language}
        passed: Counter[str] = Counter()
        for token, count in counted.items():
            passed.update(dict.fromkeys(derivations[token], count))
        kept = set(self._fixed)
        for token in sorted(derivations, key=lambda token: (-passed[token], self.bpe.ids[token])):
            missing = derivations[token] - kept
            if len(kept) + len(missing) <= self._max_tokens:
                kept |= missing
        self._fill_up(kept)
        groups = {
            "special": self._special,
            "bytes": self.bpe.alphabet,
            "training": counts[0].keys(),
            "texts": counts[1].keys(),
            "languages": self._of_language,
            "ancestors": frozenset().union(*(derivations[token] for token in kept & derivations.keys())),
            "filling": kept,
        }
        return KeptTokens(
            ids=tuple(sorted(self.bpe.ids[token] for token in kept)),
            kept_for=dict(_count_first(kept, groups)),
            counted_tokens=counted.total(),
            respelled_tokens=sum(count for token, count in counted.items() if token not in kept),
        )

    def _fill_up(self, kept: set[str]) -> None:
        """Add to `kept` the tokens of the lowest numbers that can be merged of it, up to a multiple of rows."""
        for token in sorted(self.bpe.ids, key=self.bpe.ids.__getitem__):
            if len(kept) % _ROWS == 0 or len(kept) == self._max_tokens:
                return
            if self.bpe.derivation(token) <= {token, *kept}:
                kept.add(token)

    def _by_token(self, counts: Counter[int]) -> Counter[str]:
        """Return counts by token. A sampled text may hold a row of the head that no token has."""
        return Counter({self._tokens[at]: count for at, count in counts.items() if at in self._tokens})


def count_texts(tokenizer: PreTrainedTokenizerBase, paths: Iterable[str]) -> Counter[int]:
    """Return how often each token occurs in files: JSONL of prompts and responses, or plain text.

    Raises:
        DataError: A file cannot be read or a line of JSONL is malformed.
    """
    counts: Counter[int] = Counter()
    for path in map(Path, paths):
        if path.suffix == ".jsonl":
            for item in read_conversations(path):
                counts.update(render_prompt(tokenizer, item.messages))
                if item.response is not None:
                    counts.update(encode_response(tokenizer, item.response, max_tokens=None))
        else:
            for lines in _line_groups(path):
                for encoding in tokenizer.backend_tokenizer.encode_batch(lines, add_special_tokens=False):
                    counts.update(encoding.ids)
    return counts


def _spelled_in(bpe: ByteLevelBpe, languages: Iterable[str]) -> frozenset[str]:
    """Return the tokens that are whole characters, each of which one of `languages` is written with."""
    from tokenizers import decoders

    codes = list(languages)
    if not codes:
        return frozenset()
    alphabet, decoder = Alphabet(codes), decoders.ByteLevel()
    # A part of a character decodes to U+FFFD, which no language is written with.
    return frozenset(
        token for token in bpe.ids.keys() - bpe.added if alphabet.spells(decoder.decode([token]))
    )


def _count_first(kept: Set[str], groups: Mapping[str, Set[str]]) -> Iterator[tuple[str, int]]:
    """Yield for each group how many of `kept` are in it and in none before it."""
    left = set(kept)
    for name, group in groups.items():
        yield name, len(left & group)
        left -= group


def _line_groups(path: Path) -> Iterator[list[str]]:
    """Yield the lines of a text file, some thousands at once.

    A line ends only where the next one begins with a letter or sign: there every rule of cutting ends a word, so the
    tokens of the lines are those of the whole text.
    """
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            text = stream.read()
    except (OSError, UnicodeDecodeError) as exc:
        raise DataError(f"cannot read `{path}`: {exc}", path=str(path)) from exc
    lines = re.split(r"(?<=\n)(?=\S)", text)
    for start in range(0, len(lines), _LINES_AT_ONCE):
        yield lines[start : start + _LINES_AT_ONCE]
