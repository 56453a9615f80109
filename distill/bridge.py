"""Between two tokenizers: what the teacher makes of response states that a student spells in other tokens.

A student with a tokenizer of its own spells texts in other tokens. `Bridge` gives the teacher those texts in the
teacher's, and puts its states where the student has said the same text; the student's other states have none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from .batches import Batch, TokenPair, build_batch
from .comparison import Comparison

if TYPE_CHECKING:
    from .policy import Policy
    from .shared_vocabulary import SharedVocabulary
    from .two_tokenizers import TwoTokenizers


@dataclass(frozen=True, slots=True, kw_only=True)
class TeacherView:
    """The teacher at N response states of a student."""

    hiddens: torch.Tensor  # [N, H_teacher]; 0 where it has no state about the same text
    aligned: torch.Tensor | None = None  # bool [N]  where it has; None: everywhere, both have one tokenizer

    def __getitem__(self, place: slice) -> TeacherView:
        """Return consecutive states."""
        aligned = None if self.aligned is None else self.aligned[place]
        return TeacherView(hiddens=self.hiddens[place], aligned=aligned)

    def to(self, target: torch.device | torch.dtype) -> TeacherView:
        """Return the same on a device, or with hidden states in a dtype."""
        aligned = self.aligned
        if aligned is not None and isinstance(target, torch.device):
            aligned = aligned.to(target)
        return TeacherView(hiddens=self.hiddens.to(target), aligned=aligned)


class Bridge:
    """Between two tokenizers, with the vocabulary that they share."""

    def __init__(
        self,
        tokenizers: TwoTokenizers,
        vocabulary: SharedVocabulary,
        *,
        prompts: Mapping[tuple[int, ...], Sequence[int]],
        compares: bool = True,
    ) -> None:
        """Take both tokenizers, what they share, the teacher's ids of each of the student's prompts.

        Where `compares` is not set, no state counts as being about the same text.
        """
        self._tokenizers, self.vocabulary = tokenizers, vocabulary
        self._prompts, self._compares = prompts, compares

    def comparison(self, view: TeacherView, *, spells: bool) -> Comparison | None:
        """Return how the states of `view` are compared; it spells the teacher's texts, not the student's."""
        if view.aligned is None:
            return None
        return Comparison(vocabulary=self.vocabulary, aligned=view.aligned, spells=spells)

    def read(self, teacher: Policy, batch: Batch) -> TeacherView:
        """Let the teacher read texts in the student's tokens."""
        responses = list(_responses(batch))
        pairs: list[TokenPair] = [
            (self._prompts[prompt], self._tokenizers.for_teacher(response)) for prompt, response in responses
        ]
        states = teacher(build_batch(pairs).to(teacher.device))
        return self.place(states, [ids for _, ids in responses], [ids for _, ids in pairs])

    def place(
        self, states: torch.Tensor, responses: Sequence[Sequence[int]], spelled: Sequence[Sequence[int]]
    ) -> TeacherView:
        """Put the teacher's states where the student has said the same.

        Args:
            states: At the teacher's tokens, one text after the other. [M, H_teacher].
            responses: The texts in the student's tokens, N in all.
            spelled: The same texts in the teacher's tokens, M in all.
        """
        to: list[int] = []
        of: list[int] = []
        ours = theirs = 0
        for response, other in zip(responses, spelled, strict=True):
            pairs = self._tokenizers.common_states(response, other) if self._compares else []
            to += [ours + place for place, _ in pairs]
            of += [theirs + place for _, place in pairs]
            ours, theirs = ours + len(response), theirs + len(other)
        aligned = torch.zeros(ours, dtype=torch.bool, device=states.device)
        aligned[to] = True
        hiddens = states.new_zeros(ours, states.shape[1])
        hiddens[to] = states[of]
        return TeacherView(hiddens=hiddens, aligned=aligned)


def _responses(batch: Batch) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Yield prompt and response of each row."""
    ids, used, answers = (
        tensor.cpu() for tensor in (batch.token_ids, batch.attention_mask.bool(), batch.response_mask)
    )
    for row, mask, answer in zip(ids, used, answers, strict=True):
        yield tuple(row[mask & ~answer].tolist()), tuple(row[answer].tolist())
