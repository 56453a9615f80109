"""What is compared and what is learnt where student and teacher spell texts in different tokens.

At states before which both have said the same text, the objective looks at the outcomes that both vocabularies have
(`shared_vocabulary.py`). That leaves open which of several tokens of an outcome the student takes, and all that it
says between two such states. On the teacher's texts it learns both by the cross-entropy of the tokens that spell the
text, the *spelling*: by the chain rule, forward KL with the spelling is the cross-entropy of the whole text in which
the part that both vocabularies have is an expectation under the teacher instead of one sample. On the student's own
texts nothing says how to spell, and the other states have no part but what a token answers for (`score.py`). With one
vocabulary and all states aligned nothing is left to spell: the objective is what it always is. Legend: C states, V
tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from .objective import StateTerms, Weights
from .shared_vocabulary import SharedVocabulary

_VALUES = ("kl", "gap", "game_value", "best_value", "total_variation", "entropy", "loss")


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How some response states of a batch are compared."""

    vocabulary: SharedVocabulary
    aligned: torch.Tensor  # bool [N]  both have said the same text before
    spells: bool  # the texts are the teacher's, and their spelling is learnt

    def rows(self, rows: slice) -> Comparison:
        """Return what concerns some of the states."""
        return replace(self, aligned=self.aligned[rows])

    def outcomes_of(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the outcomes that the student's tokens count for. int64 [C]."""
        return self.vocabulary.student.of[tokens]

    def by_tokens(
        self,
        terms: StateTerms,
        student_logprobs: torch.Tensor,
        outcomes: torch.Tensor,
        *,
        targets: torch.Tensor,
        cross_entropy: float,
    ) -> StateTerms:
        """Return terms whose gradient is by the student's tokens, spelling added, zero where nothing is compared.

        Args:
            terms: By outcomes, without cross-entropy.
            student_logprobs: Of tokens. [C, V].
            outcomes: The student's log-probabilities of outcomes. [C, outcomes].
            targets: Tokens of the texts. int64 [C].
            cross_entropy: Weight of the whole token's cross-entropy at every state; 0 spells what is left open.
        """
        aligned = self.aligned
        values = {name: getattr(terms, name) * aligned for name in _VALUES}
        if terms.taken_gap is not None:
            values["taken_gap"] = terms.taken_gap * aligned
        by_outcome = terms.grad_logits * aligned[:, None]
        if not self.spells:
            grad = self.vocabulary.spread(by_outcome, student_logprobs, outcomes)
            return replace(terms, **values, grad_logits=grad)
        weight = cross_entropy or 1.0
        spelled = self.outcomes_of(targets)[:, None]
        # At aligned states, -log of the token's share of its outcome; else -log of the token.
        is_whole = torch.ones_like(aligned) if cross_entropy else ~aligned
        picked = torch.zeros_like(outcomes).scatter_(1, spelled, 1.0)
        by_outcome += weight * torch.where(is_whole[:, None], outcomes.exp(), picked)
        grad = self.vocabulary.spread(by_outcome, student_logprobs, outcomes)
        grad.scatter_add_(1, targets[:, None], grad.new_full((len(targets), 1), -weight))
        given = outcomes.gather(1, spelled).squeeze(1).masked_fill(is_whole, 0.0)
        values["loss"] = values["loss"] - weight * (
            student_logprobs.gather(1, targets[:, None]).squeeze(1) - given
        )
        return replace(terms, **values, grad_logits=grad)


def without_tokens(weights: Weights) -> Weights:
    """Return the weights of what outcomes can tell: all but the cross-entropy of tokens."""
    return replace(weights, cross_entropy=0.0)
