"""A teacher's tokenizer and a student's own: the same text in the tokens of either."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .shared_vocabulary import SharedVocabulary, share_vocabulary
from .spans import common_states
from .token_bytes import TokenBytes, token_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BROKEN = "\ufffd"  # what a part of a character decodes to


@dataclass(frozen=True, slots=True, kw_only=True)
class Speller:
    """One model's way of writing a response."""

    tokenizer: PreTrainedTokenizerBase
    ends: Collection[int]  # tokens after which a response is over
    bytes: TokenBytes

    def spell(self, text: str, *, has_ended: bool) -> tuple[int, ...]:
        """Return the tokens of a response, with the end token if it has ended, and at least one."""
        ids = list(self.tokenizer.encode(text, add_special_tokens=False))
        if has_ended or not ids:
            ids.append(int(self.tokenizer.eos_token_id))
        return tuple(ids)

    def read(self, ids: Sequence[int]) -> tuple[str, bool]:
        """Return the text of a response, without parts of characters at its end, and whether it has ended."""
        has_ended = bool(ids) and ids[-1] in self.ends
        said = list(ids[:-1] if has_ended else ids)
        text: str = self.tokenizer.decode(said, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text.rstrip(_BROKEN), has_ended


class TwoTokenizers:
    """The teacher's and the student's."""

    def __init__(self, teacher: Speller, student: Speller) -> None:
        self._teacher, self._student = teacher, student
        # A space that one side alone writes before its first word makes that word another token.
        self._from_start = teacher.bytes.adds_space == student.bytes.adds_space

    def for_student(self, ids: Sequence[int]) -> tuple[int, ...]:
        """Return a response of the teacher's in the student's tokens."""
        text, has_ended = self._teacher.read(ids)
        return self._student.spell(text, has_ended=has_ended)

    def for_teacher(self, ids: Sequence[int]) -> tuple[int, ...]:
        """Return a response of the student's in the teacher's tokens."""
        text, has_ended = self._student.read(ids)
        return self._teacher.spell(text, has_ended=has_ended)

    def common_states(self, student_ids: Sequence[int], teacher_ids: Sequence[int]) -> list[tuple[int, int]]:
        """Return the places, in the student's and the teacher's response, before which both have said the same."""
        return common_states(
            self._student.bytes.spelled(student_ids),
            self._teacher.bytes.spelled(teacher_ids),
            from_start=self._from_start,
        )

    @property
    def sizes(self) -> tuple[int, int]:
        """How many tokens the teacher's has, and the student's."""
        return len(self._teacher.tokenizer), len(self._student.tokenizer)

    def shared_vocabulary(self, *, teacher_rows: int, student_rows: int) -> SharedVocabulary:
        """Return the outcomes of both, for heads of so many rows."""
        return share_vocabulary(
            self._teacher.bytes,
            self._student.bytes,
            ends=(self._teacher.ends, self._student.ends),
            rows=(teacher_rows, student_rows),
        )


def speller(tokenizer: PreTrainedTokenizerBase, ends: Collection[int]) -> Speller:
    """Return the speller of a tokenizer with these end tokens."""
    return Speller(tokenizer=tokenizer, ends=frozenset(ends), bytes=token_bytes(tokenizer))
