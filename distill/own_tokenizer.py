"""A student that keeps its own tokenizer, as the prepare stage sees it: its prompts, and the texts in its tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ammd.encoder_decoder import is_encoder_decoder
from ammd.errors import DistillError

from .checkpoint import end_token_ids, load_model
from .match import Match, measure_match
from .policy import Policy
from .prompts import Example
from .teacher_states import TeacherStates
from .two_tokenizers import TwoTokenizers, speller

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    PromptIds = list[tuple[int, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnTokenizer:
    """The student's tokenizer beside the teacher's, and what its model says of itself."""

    tokenizer: PreTrainedTokenizerBase
    tokenizers: TwoTokenizers
    rows: int  # of its head
    context_tokens: int | None  # that it can read; None: any number
    train_ids: PromptIds  # of the training prompts
    heldout_ids: PromptIds

    def respelled(self, examples: Sequence[Example], prompt_ids: Sequence[tuple[int, ...]]) -> list[Example]:
        """Return the same texts in the student's tokens, the teacher's beside them; cut where it cannot read on."""
        return [
            replace(
                example,
                prompt_ids=ids,
                response_ids=self.tokenizers.for_student(example.response_ids)[: self._room(ids)],
                teacher_prompt_ids=example.prompt_ids,
                teacher_response_ids=example.response_ids,
            )
            for example, ids in zip(examples, prompt_ids, strict=True)
        ]

    def match(self, folder: Path, examples: Sequence[Example], teacher: PreTrainedModel) -> Match:
        """Return what both vocabularies have in common on texts whose teacher's states lie in `folder`."""
        head = teacher.get_output_embeddings().weight
        vocabulary = self.tokenizers.shared_vocabulary(teacher_rows=len(head), student_rows=self.rows)
        return measure_match(
            self.tokenizers,
            vocabulary.to(head.device),
            student=[example.pair for example in examples],
            teacher=[example.teacher_pair for example in examples],
            states=TeacherStates(folder),
            head=head,
        )

    def _room(self, prompt_ids: Sequence[int]) -> int | None:
        return None if self.context_tokens is None else self.context_tokens - len(prompt_ids)


def read_own_tokenizer(
    folder: Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    teacher: PreTrainedModel,
    teacher_tokenizer: PreTrainedTokenizerBase,
    render: Callable[[PreTrainedTokenizerBase, PreTrainedModel], tuple[PromptIds, PromptIds]],
) -> OwnTokenizer:
    """Return what is needed of the student in `folder`, whose `tokenizer` differs.

    Args:
        folder: Its checkpoint.
        tokenizer: Its own.
        teacher: The model.
        teacher_tokenizer: The other tokenizer.
        render: Gives the ids of the training prompts and of the held-out ones for a tokenizer and its model.

    Raises:
        DistillError: It has no chat template, or a model that cannot be trained.
        DataError: A prompt is too long for it.
    """
    model = load_model(folder, dtype=torch.float32)
    if not (tokenizer.chat_template or is_encoder_decoder(model)):
        raise DistillError(
            "the student keeps its own tokenizer, which has no chat template",
            hint="use an instruction-tuned student, or put a chat_template.jinja into its folder",
        )
    Policy(model)  # refused before any work, if at all
    train_ids, heldout_ids = render(tokenizer, model)
    return OwnTokenizer(
        tokenizer=tokenizer,
        tokenizers=TwoTokenizers(
            speller(teacher_tokenizer, end_token_ids(teacher, teacher_tokenizer)),
            speller(tokenizer, end_token_ids(model, tokenizer)),
        ),
        rows=len(model.get_output_embeddings().weight),
        context_tokens=getattr(model.config, "max_position_embeddings", None),
        train_ids=train_ids,
        heldout_ids=heldout_ids,
    )
