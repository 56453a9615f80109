"""Talk to a model: one prompt, or turns from a stream with the whole conversation as history."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TextIO

from ammd.machine import available_cores

from .artifact_ref import EngineKind
from .conversation import Conversation
from .engine import open_engine
from .generate import Ends, FinishReason
from .sampling import Sampling

CONTEXT_TOKENS = 2048
_PROMPT_MARK = "> "
_log = logging.getLogger(__name__)


def chat(
    path: Path,
    *,
    prompt: str | None,
    turns: Iterable[str],
    out: TextIO,
    sampling: Sampling,
    ends: Ends,
    system: str | None = None,
    context_tokens: int = CONTEXT_TOKENS,
    threads: int | None = None,
    engine: EngineKind | None = None,
) -> None:
    """Answer `prompt`, or each of `turns` until they end, streaming text to `out`.

    Ctrl-C during an answer keeps what has been said so far and goes on with the next turn; with `prompt`
    the text so far stays on screen and the interrupt is passed on, as it is while a turn is awaited. Why an
    answer is over is logged where it was no end token.

    Args:
        path: A GGUF, an ONNX folder or a checkpoint folder.
        prompt: The only message, or None for a conversation.
        turns: The user's messages, one a line (standard input, say).
        out: Where the answers go, piece by piece.
        sampling: How tokens are chosen.
        ends: Where an answer ends.
        system: System message that opens the conversation.
        context_tokens: Longest conversation; its oldest exchanges are dropped beyond that.
        threads: CPU threads; None for all cores that this process may use.
        engine: The engine; None for the one that the form of `path` calls for.

    Raises:
        ArtifactError: No engine knows what is at `path`.
        EngineError: The model cannot be loaded or run in `engine`, or one turn alone does not fit into the context.
        KeyboardInterrupt: Ctrl-C outside an answer, or in the answer to `prompt`.
    """
    with open_engine(
        path, threads=threads or available_cores(), context_tokens=context_tokens, kind=engine
    ) as opened:
        conversation = Conversation(opened, system=system, sampling=sampling, ends=ends)
        if prompt is None:
            _converse(conversation, turns, out)
        elif _answer(conversation, prompt, out) is FinishReason.CANCELLED:
            raise KeyboardInterrupt


def _converse(conversation: Conversation, turns: Iterable[str], out: TextIO) -> None:
    _say(out, _PROMPT_MARK)
    try:
        for turn in turns:
            if turn.strip():
                _answer(conversation, turn.strip(), out)
            _say(out, _PROMPT_MARK)
    finally:  # what is said of an error or an interrupt begins a line
        _say(out, "\n")


def _answer(conversation: Conversation, question: str, out: TextIO) -> FinishReason:
    reason = conversation.ask(question, show=partial(_say, out))
    _say(out, " ...\n" if reason is FinishReason.CANCELLED else "\n")
    if reason is not FinishReason.END_TOKEN:
        _log.info("the answer is over: %s", reason.value)
    return reason


def _say(out: TextIO, text: str) -> None:
    out.write(text)
    out.flush()
