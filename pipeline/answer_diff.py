"""Where a model's answer differs from the teacher's, word by word."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass

TEACHER = "teacher"
_WORDS = re.compile(r"\s*\S+")  # a word with the space before it, so that joined words are the text


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Words in succession that all stand in the other answer, too, or all do not."""

    text: str
    differs: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a model has answered, beside the teacher's answer."""

    name: str
    pieces: tuple[Piece, ...]
    alike: float | None  # words that both have in the same order, twice, as a share of all words of both


def beside_teacher(answers: Mapping[str, str]) -> list[Answer]:
    """Return the answers of all models by name as pieces; where the teacher's is not known, whole."""
    teacher = answers.get(TEACHER)
    return [
        Answer(name=name, pieces=(Piece(text=text, differs=False),) if text else (), alike=None)
        if teacher is None or name == TEACHER
        else _compare(name, text, teacher)
        for name, text in answers.items()
    ]


def _compare(name: str, answer: str, other: str) -> Answer:
    words, others = _WORDS.findall(answer), _WORDS.findall(other)
    matcher = difflib.SequenceMatcher(
        None, [word.strip() for word in others], [word.strip() for word in words], autojunk=False
    )
    pieces = []
    for kind, _, _, start, end in matcher.get_opcodes():
        text = "".join(words[start:end])
        marked = text.lstrip()
        if kind == "equal" or not marked:
            pieces.append(Piece(text=text, differs=False))
        else:  # the space before it is no difference
            pieces += [
                Piece(text=text[: len(text) - len(marked)], differs=False),
                Piece(text=marked, differs=True),
            ]
    rest = answer[sum(len(word) for word in words) :]
    pieces.append(Piece(text=rest, differs=False))
    return Answer(name=name, pieces=tuple(piece for piece in pieces if piece.text), alike=matcher.ratio())
