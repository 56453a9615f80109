"""Talk to a model: one prompt, or turns from a stream with the whole conversation as history."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from ammd.machine import available_cores

from .artifact_ref import EngineKind
from .engine import Engine, open_engine
from .generate import Sampling, generate

if TYPE_CHECKING:
    import numpy as np

CONTEXT_TOKENS = 2048
_PROMPT_MARK = "> "


def chat(
    path: Path,
    *,
    prompt: str | None,
    turns: Iterable[str],
    out: TextIO,
    sampling: Sampling,
    seed: int = 0,
    system: str | None = None,
    context_tokens: int = CONTEXT_TOKENS,
    threads: int | None = None,
    engine: EngineKind | None = None,
) -> None:
    """Answer `prompt`, or each of `turns` until they end, streaming text to `out`.

    Ctrl-C during an answer keeps what has been said so far and goes on with the next turn; with `prompt`
    the text so far stays on screen and the interrupt is passed on.

    Args:
        path: A GGUF, an ONNX folder or a checkpoint folder.
        prompt: The only message, or None for a conversation.
        turns: The user's messages, one a line (standard input, say).
        out: Where the answers go, piece by piece.
        sampling: How tokens are chosen.
        seed: Seed of the sampling.
        system: System message that opens the conversation.
        context_tokens: Longest conversation.
        threads: CPU threads; None for all cores that this process may use.
        engine: The engine; None for the one that the form of `path` calls for.

    Raises:
        ArtifactError: No engine knows what is at `path`.
        EngineError: The model cannot be loaded or run in `engine`, or the conversation no longer fits into the context.
    """
    import numpy as np

    opening = [{"role": "system", "content": system}] if system is not None else []
    generator = np.random.default_rng(seed)
    with open_engine(
        path, threads=threads or available_cores(), context_tokens=context_tokens, kind=engine
    ) as opened:
        if prompt is not None:
            messages = [*opening, {"role": "user", "content": prompt}]
            for text in _answer(opened, messages, sampling, generator):
                _say(out, text)
            _say(out, "\n")
            return
        _converse(opened, opening, turns, out=out, sampling=sampling, generator=generator)


def _converse(
    engine: Engine,
    history: list[dict[str, str]],
    turns: Iterable[str],
    *,
    out: TextIO,
    sampling: Sampling,
    generator: np.random.Generator,
) -> None:
    _say(out, _PROMPT_MARK)
    for turn in turns:
        if turn.strip():
            history.append({"role": "user", "content": turn.strip()})
            said: list[str] = []
            try:
                for text in _answer(engine, history, sampling, generator):
                    said.append(text)
                    _say(out, text)
            except KeyboardInterrupt:
                _say(out, " ...")
            history.append({"role": "assistant", "content": "".join(said)})
            _say(out, "\n")
        _say(out, _PROMPT_MARK)
    _say(out, "\n")


def _answer(
    engine: Engine,
    messages: Sequence[Mapping[str, str]],
    sampling: Sampling,
    generator: np.random.Generator,
) -> Iterator[str]:
    prompt_ids = engine.tokenize(engine.render_chat(messages))
    for piece in generate(engine, prompt_ids, sampling=sampling, generator=generator):
        yield piece.text


def _say(out: TextIO, text: str) -> None:
    out.write(text)
    out.flush()
