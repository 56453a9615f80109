"""What can be said of a file by itself: it opens, reads text, renders chats, stops, and computes numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ammd.errors import EngineError

from .artifact_ref import asked_kind
from .engine import START_TOKEN, open_engine
from .reference import PROBE_CHATS, PROBE_TEXTS

if TYPE_CHECKING:
    from .engine import Engine

_CONTEXT_TOKENS = 512
_ANSWER_TOKENS = 16


def inspect(request: Mapping[str, Any]) -> dict[str, Any]:
    """Look at one file. Runs in a child.

    Args:
        request: `path` of the file, `engine`, `threads`.

    Returns:
        A flat record for the report; `faults` lists what no checkpoint is needed to see.

    Raises:
        EngineError: The file cannot be loaded or run.
    """
    with open_engine(
        Path(request["path"]),
        threads=request["threads"],
        context_tokens=_CONTEXT_TOKENS,
        kind=asked_kind(request),
    ) as engine:
        chats, faults = _render_chats(engine)
        faults += _check_texts(engine)
        if not engine.end_token_ids:
            faults.append("no token ends a response")
        record: dict[str, Any] = {
            "engine": engine.name,
            "end_token_ids": sorted(engine.end_token_ids),
            "bos_token_id": engine.bos_token_id,
            "chats": len(chats),
            "token_texts": len(_plain_texts(engine)),
        }
        if chats:
            answer, fault = _answer(engine, next(iter(chats.values())))
            record["answer"] = answer
            faults += [fault] if fault else []
        return record | {"faults": faults}


def _render_chats(engine: Engine) -> tuple[dict[str, str], list[str]]:
    """Return the rendered chats by name, and what is wrong with them; a template may refuse system turns."""
    rendered: dict[str, str] = {}
    faults = []
    # An encoder-decoder reads one text.
    known = ["one turn"] if START_TOKEN in engine.settings else list(PROBE_CHATS)
    for name in known:
        messages = PROBE_CHATS[name]
        try:
            text = engine.render_chat(messages, add_generation_prompt=True)
        except EngineError as exc:
            if name in ("one turn", "several turns"):
                faults.append(f"the chat `{name}` cannot be rendered: {exc}")
            continue
        rendered[name] = text
        missing = [turn["content"] for turn in messages if turn["content"].strip() not in text]
        if missing:
            faults.append(f"the chat `{name}` is rendered without its text {missing[0]!r}")
        bos = engine.bos_token_id
        if bos is not None and engine.tokenize(text)[:2] == [bos, bos]:
            faults.append(f"the chat `{name}` starts with two BOS tokens")
    return rendered, faults


def _check_texts(engine: Engine) -> list[str]:
    """Return which texts do not come back from their own token ids; a tokenizer may add a space in front.

    T5's know only some characters, so of an encoder-decoder plain English and numbers have to come back.
    """
    faults = []
    for text in _plain_texts(engine):
        found = engine.detokenize(engine.tokenize(text))
        if found.strip() != text.strip():
            faults.append(f"token ids of {text[:40]!r} spell {found[:40]!r}")
    return faults


def _plain_texts(engine: Engine) -> tuple[str, ...]:
    return PROBE_TEXTS[:2] if START_TOKEN in engine.settings else PROBE_TEXTS


def _answer(engine: Engine, prompt: str) -> tuple[str, str | None]:
    """Return the greedy answer, and what is wrong with its numbers."""
    import numpy as np

    answer: list[int] = []
    logits = engine.prefill(engine.tokenize(prompt))
    while len(answer) < _ANSWER_TOKENS:
        if not np.isfinite(logits).all():
            return engine.detokenize(answer), f"its logits after {len(answer)} tokens are not numbers"
        token = int(logits.argmax())
        if token in engine.end_token_ids:
            break
        answer.append(token)
        logits = engine.decode(token)
    return engine.detokenize(answer), None
