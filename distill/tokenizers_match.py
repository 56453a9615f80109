"""Whether two tokenizers number the same text with the same ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from ammd.errors import TokenizerMismatchError

from .gguf_tokenizer import PROBE_TEXTS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_PROBE_CHAT = [
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "Two."},
    {"role": "user", "content": "Three?"},
]


def check_same_tokenizer(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> None:
    """Check that both give the same id to every token, split the probe texts and render a probe chat alike.

    Equal vocabulary *size* proves nothing, and padded embedding rows make it differ between models that share
    a tokenizer, so neither is looked at. A student without a chat template takes the teacher's.

    Raises:
        TokenizerMismatchError: Names the first difference.
    """
    hint = (
        'pick a student of the teacher\'s own family, cut one from it (`kind = "depth"`), or let this one keep its '
        'tokenizer: `prepare.student.tokenizer = "own"`'
    )
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    if ours != theirs:
        token = min(
            {token for token, _ in ours.items() ^ theirs.items()},
            key=lambda token: ours.get(token, theirs.get(token, 0)),
        )
        raise TokenizerMismatchError(
            f"student and teacher number their tokens differently: `{token}` is "
            f"{ours.get(token)} and {theirs.get(token)}",
            hint=hint,
            token=token,
        )
    for name in ("eos_token_id", "bos_token_id"):
        if getattr(student, name) != getattr(teacher, name):
            raise TokenizerMismatchError(
                f"`{name}` is {getattr(student, name)} for the student and {getattr(teacher, name)} "
                "for the teacher",
                hint=hint,
            )
    for text in PROBE_TEXTS:
        if student.encode(text, add_special_tokens=False) != teacher.encode(text, add_special_tokens=False):
            raise TokenizerMismatchError(f"student and teacher split `{text}` differently", hint=hint)
    if student.chat_template and teacher.chat_template and _rendered(student) != _rendered(teacher):
        raise TokenizerMismatchError(
            f"student and teacher render a chat differently: `{_rendered(student)}` and `{_rendered(teacher)}`",
            hint="give the student's checkpoint the teacher's chat template, or none",
        )


def check_same_rows(student: Path, teacher: Path) -> None:
    """Check that the heads of two checkpoints have as many rows, those that no token has included.

    Raises:
        TokenizerMismatchError: They have not: the models pad their vocabulary differently.
    """
    rows = [
        json.loads((folder / "config.json").read_text(encoding="utf-8")).get("vocab_size")
        for folder in (student, teacher)
    ]
    if None not in rows and rows[0] != rows[1]:
        raise TokenizerMismatchError(
            f"the student's head has `{rows[0]}` rows and the teacher's `{rows[1]}`: one tokenizer, padded differently",
            hint='set `prepare.student.tokenizer = "own"`, which matches tokens by their text, or pad one to the other',
        )


def _rendered(tokenizer: PreTrainedTokenizerBase) -> str:
    text: str = tokenizer.apply_chat_template(_PROBE_CHAT, tokenize=False, add_generation_prompt=True)
    return text
