from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from ammd.errors import EngineError
from ammd.runtime import chat as module
from ammd.runtime.chat import chat
from ammd.runtime.generate import Ends
from ammd.runtime.sampling import Sampling


def run(engine: object, monkeypatch: pytest.MonkeyPatch, **options: object) -> str:
    monkeypatch.setattr(module, "open_engine", lambda path, **settings: engine)
    out = io.StringIO()
    values = {"prompt": None, "turns": [], "sampling": Sampling(), "ends": Ends(max_new_tokens=20)} | options
    chat(Path("model"), out=out, **values)  # type: ignore[arg-type]
    return out.getvalue()


def test_one_prompt_is_answered(saying: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = saying("fine")
    assert run(engine, monkeypatch, prompt="hi") == "fine\n"
    assert engine.detokenize(engine.prompts[0]) == "u:hi|"
    assert engine.closed


def test_history_and_system_message_travel_along(
    make_engine: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(answer_ok, context_tokens=99)
    shown = run(engine, monkeypatch, turns=["one\n", "\n", "two\n"], system="be brief")
    assert engine.detokenize(engine.prompts[1]) == "s:be brief|u:one|a:ok|u:two|"
    assert shown == "> ok\n> > ok\n> \n"


def test_interrupt_keeps_the_text_so_far(make_engine: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(sequence: list[int]) -> np.ndarray:
        if bytes(sequence).endswith(b"u:one|o"):
            raise KeyboardInterrupt
        return answer_ok(sequence)

    engine = make_engine(interrupted, context_tokens=99)
    shown = run(engine, monkeypatch, turns=["one", "two"])
    assert shown == "> o ...\n> ok\n> \n"
    assert engine.detokenize(engine.prompts[1]) == "u:one|a:o|u:two|"


def test_interrupt_of_one_prompt_is_passed_on(make_engine: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(sequence: list[int]) -> np.ndarray:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(make_engine(interrupted), monkeypatch, prompt="hi")


def test_interrupt_while_a_turn_is_awaited_is_passed_on(
    make_engine: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    def turns() -> Iterator[str]:
        yield "one"
        raise KeyboardInterrupt

    engine = make_engine(answer_ok, context_tokens=99)
    with pytest.raises(KeyboardInterrupt):
        run(engine, monkeypatch, turns=turns())
    assert engine.closed


def test_end_that_is_no_end_token_is_told(
    saying: Callable, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="ammd")
    assert run(saying("fine"), monkeypatch, prompt="hi", ends=Ends(max_new_tokens=2)) == "fi\n"
    assert run(saying("fine"), monkeypatch, prompt="hi") == "fine\n"
    assert [record.getMessage() for record in caplog.records] == ["the answer is over: length"]


def test_conversation_longer_than_the_context_is_refused(
    saying: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(EngineError, match="7 tokens leaves no room in a context of 5"):
        run(saying("x", context_tokens=5), monkeypatch, prompt="long")


def answer_ok(sequence: list[int]) -> np.ndarray:
    """Say `ok` and end, whatever the prompt, which ends in `|`."""
    said = bytes(sequence).rpartition(b"|")[2]
    logits = np.zeros(256, dtype=np.float32)
    logits[b"ok\0"[len(said)]] = 9
    return logits
