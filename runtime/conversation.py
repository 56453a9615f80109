"""A chat with one engine: its history, rendered anew by the model's own template for each answer.

When the history and an answer no longer fit into the context, the oldest exchanges go; the system message stays.
Room is kept for the whole answer, but for no more than a quarter of the context: a long limit must not cost the
history.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .engine import Engine
from .generate import Ends, FinishReason, generate
from .sampling import Sampling

_ANSWER_SHARE = 4  # one in so many tokens of the context is kept for the answer
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """A question and its answer."""

    question: str
    answer: str  # as it was shown
    finish_reason: FinishReason  # CANCELLED where the answer was cut


class Conversation:
    """Questions and answers, one after another."""

    def __init__(self, engine: Engine, *, system: str | None, sampling: Sampling, ends: Ends) -> None:
        """Begin without history.

        Args:
            engine: The model.
            system: System message that opens the conversation.
            sampling: How tokens are chosen; each answer begins at the seed, so that it depends on the history alone.
            ends: Where an answer ends.
        """
        self._engine = engine
        self._opening = [{"role": "system", "content": system}] if system is not None else []
        self._sampling = sampling
        self._ends = ends
        self.exchanges: list[Exchange] = []

    def ask(self, question: str, *, show: Callable[[str], object]) -> FinishReason:
        """Answer `question`, give each piece of text to `show`, and return why the answer is over.

        An interrupt ends the answer. What was shown stays in the history; nothing stays if nothing was shown.

        Raises:
            EngineError: The question alone leaves no room in the context, or the engine failed.
        """
        prompt_ids = self._fit(question)
        said: list[str] = []
        reason = FinishReason.CANCELLED
        try:
            for piece in generate(self._engine, prompt_ids, sampling=self._sampling, ends=self._ends):
                reason = piece.finish_reason or reason
                said.append(piece.text)
                show(piece.text)
        except KeyboardInterrupt:
            reason = FinishReason.CANCELLED
        answer = "".join(said)
        if answer or reason is not FinishReason.CANCELLED:
            self.exchanges.append(Exchange(question=question, answer=answer, finish_reason=reason))
        return reason

    def _fit(self, question: str) -> Sequence[int]:
        """Return the prompt, after dropping what leaves no room for an answer."""
        context = self._engine.context_tokens
        room = min(self._ends.max_new_tokens, context // _ANSWER_SHARE)
        for first in range(len(self.exchanges) + 1):
            prompt_ids = self._prompt_ids(self.exchanges[first:], question)
            if len(prompt_ids) + room <= context:
                break
        if first:
            del self.exchanges[:first]
            dropped = "exchange is" if first == 1 else f"{first} exchanges are"
            _log.warning("the context of %d tokens is full: the oldest %s dropped", context, dropped)
        return prompt_ids

    def _prompt_ids(self, exchanges: Sequence[Exchange], question: str) -> list[int]:
        messages = list(self._opening)
        for exchange in exchanges:
            messages.append({"role": "user", "content": exchange.question})
            messages.append({"role": "assistant", "content": exchange.answer})
        messages.append({"role": "user", "content": question})
        return self._engine.tokenize(self._engine.render_chat(messages))
