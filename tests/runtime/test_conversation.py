"""History: what the model is given to read, turn after turn. The engine of rules renders `u:one|a:ok|`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ammd.errors import EngineError
from ammd.runtime.conversation import Conversation
from ammd.runtime.generate import Ends, FinishReason
from ammd.runtime.sampling import Sampling


def conversation(engine: Any, *, system: str | None = None, **ends: Any) -> Conversation:
    return Conversation(engine, system=system, sampling=Sampling(), ends=Ends(**ends))


def ask(talk: Conversation, *questions: str) -> list[str]:
    answers = []
    for question in questions:
        shown: list[str] = []
        talk.ask(question, show=shown.append)
        answers.append("".join(shown))
    return answers


def read_by(engine: Any) -> list[str]:
    return [engine.detokenize(prompt) for prompt in engine.prompts]


def test_whole_history_goes_through_the_template_each_time(make_engine: Callable) -> None:
    engine = make_engine(answer_ok, context_tokens=99)
    assert ask(conversation(engine, system="be brief"), "one", "two") == ["ok", "ok"]
    assert read_by(engine) == ["s:be brief|u:one|", "s:be brief|u:one|a:ok|u:two|"]


def test_oldest_exchange_goes_when_the_context_is_full_and_the_system_message_stays(
    make_engine: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    engine = make_engine(answer_ok, context_tokens=26)  # s:x| and two exchanges of 11 tokens are 26
    talk = conversation(engine, system="x", max_new_tokens=3)
    ask(talk, "1111", "2222", "3333")
    assert read_by(engine) == ["s:x|u:1111|", "s:x|u:1111|a:ok|u:2222|", "s:x|u:2222|a:ok|u:3333|"]
    assert [exchange.question for exchange in talk.exchanges] == ["2222", "3333"]
    assert [record.getMessage() for record in caplog.records] == [
        "the context of 26 tokens is full: the oldest exchange is dropped"
    ]


def test_one_long_turn_drops_as_many_exchanges_as_it_takes(
    make_engine: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    engine = make_engine(answer_ok, context_tokens=40)
    ask(conversation(engine, max_new_tokens=3), "1", "2", "3", "4" * 30)
    assert read_by(engine)[-1] == "u:" + "4" * 30 + "|"
    assert "the oldest 3 exchanges are dropped" in caplog.text


def test_long_answers_do_not_cost_the_history(make_engine: Callable) -> None:
    engine = make_engine(answer_ok, context_tokens=32)
    ask(conversation(engine, max_new_tokens=1000), "one", "two")  # 17 tokens, 8 kept for the answer
    assert read_by(engine)[-1] == "u:one|a:ok|u:two|"


def test_turn_that_does_not_fit_alone_is_refused(make_engine: Callable) -> None:
    talk = conversation(make_engine(answer_ok, context_tokens=20))
    with pytest.raises(EngineError, match="33 tokens leaves no room in a context of 20"):
        ask(talk, "one", "4" * 30)


def test_interrupted_answer_stays_in_the_history_marked_as_cut(make_engine: Callable) -> None:
    engine = make_engine(interrupted_after(b"u:one|o"), context_tokens=99)
    talk = conversation(engine)
    assert ask(talk, "one", "two") == ["o", "ok"]
    assert [exchange.finish_reason for exchange in talk.exchanges] == [
        FinishReason.CANCELLED,
        FinishReason.END_TOKEN,
    ]
    assert read_by(engine)[1] == "u:one|a:o|u:two|"


def test_interrupt_by_the_reader_keeps_what_it_was_given(make_engine: Callable) -> None:
    def show(text: str) -> None:
        raise KeyboardInterrupt

    talk = conversation(make_engine(answer_ok, context_tokens=99))
    assert talk.ask("one", show=show) is FinishReason.CANCELLED
    assert [exchange.answer for exchange in talk.exchanges] == ["o"]


def test_answer_cut_before_its_first_character_leaves_no_trace(make_engine: Callable) -> None:
    engine = make_engine(interrupted_after(b"u:one|"), context_tokens=99)
    assert ask(conversation(engine), "one", "two") == ["", "ok"]
    assert read_by(engine)[1] == "u:two|"


def test_text_before_a_stop_string_is_the_answer(make_engine: Callable) -> None:
    engine = make_engine(answer_ok, context_tokens=99)
    talk = conversation(engine, stop_strings=("k",))
    assert talk.ask("one", show=lambda text: None) is FinishReason.STOP_STRING
    assert [exchange.answer for exchange in talk.exchanges] == ["o"]


def interrupted_after(text: bytes) -> Callable[[list[int]], np.ndarray]:
    def rule(sequence: list[int]) -> np.ndarray:
        if bytes(sequence).endswith(text):
            raise KeyboardInterrupt
        return answer_ok(sequence)

    return rule


def answer_ok(sequence: list[int]) -> np.ndarray:
    """Say `ok` and end, whatever the prompt, which ends in `|`."""
    said = bytes(sequence).rpartition(b"|")[2]
    logits = np.zeros(256, dtype=np.float32)
    logits[b"ok\0"[len(said)]] = 9
    return logits
