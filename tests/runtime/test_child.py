from __future__ import annotations

import signal
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ammd.errors import ArtifactError, EngineError
from ammd.runtime import child


def test_result_comes_back(tiny_gguf: Path) -> None:
    request = {"path": str(tiny_gguf), "threads": 1, "prompt_tokens": 3, "decode_tokens": 2}
    sample = child.call("bench_child:measure", request | {"repetitions": 1, "warmup": 0})
    assert len(sample["token_s"][0]) == 2


def test_error_of_the_family_comes_back_whole() -> None:
    with pytest.raises(ArtifactError, match=r"no model at `/nowhere\.gguf`") as caught:
        child.call(
            "bench_child:measure",
            {"path": "/nowhere.gguf", "threads": 1, "prompt_tokens": 1, "decode_tokens": 1},
        )
    assert caught.value.facts == {"path": "/nowhere.gguf"}


def test_crash_carries_the_last_lines() -> None:
    with pytest.raises(EngineError, match=r"ended with exit code 1; its last lines:[\s\S]*KeyError: 'path'"):
        child.call("bench_child:measure", {})


def test_kill_names_the_signal_and_the_likely_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    script = f"import os; os.write(2, b'about to load'); os.kill(os.getpid(), {signal.SIGKILL})"
    _start_instead(monkeypatch, lambda _command, **options: _popen([sys.executable, "-c", script], **options))
    with pytest.raises(EngineError, match="was killed by SIGKILL") as caught:
        child.call("bench_child:measure", {})
    assert "about to load" in str(caught.value)
    assert "out of memory" in caught.value.hint
    assert caught.value.facts["status"] == -signal.SIGKILL


def test_interrupt_leaves_no_process_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def start(command: list[str], **options: Any) -> Any:
        started.append(_popen(command, **options))
        return started[0]

    _start_instead(monkeypatch, start)
    with pytest.raises(KeyboardInterrupt), child.Child():
        raise KeyboardInterrupt
    assert started[0].poll() == -signal.SIGKILL


def test_one_process_answers_several_calls_and_an_error_does_not_end_it(tiny_heldout: Path) -> None:
    request = {"path": "/nowhere", "heldout": str(tiny_heldout), "folder": "/", "threads": 1}
    request |= {"prompts": 1, "texts": 1, "answer_tokens": 1}
    with child.Child() as process:
        for _ in range(2):
            with pytest.raises(EngineError, match="/nowhere"):
                process.call("answers:save_teacher", request)


def test_what_a_library_prints_does_not_come_between(monkeypatch: pytest.MonkeyPatch) -> None:
    script = """
import os, sys, types
from ammd.runtime import child
def say(request):
    os.write(1, b"from native code\\n")
    print("from Python")
    return request
sys.modules["ammd.runtime.noisy"] = types.SimpleNamespace(say=say)
child.main()
"""
    _start_instead(monkeypatch, lambda _command, **options: _popen([sys.executable, "-c", script], **options))
    with child.Child() as process:
        assert [process.call("noisy:say", {"n": n}) for n in (1, 2)] == [{"n": 1}, {"n": 2}]


_popen = subprocess.Popen


def _start_instead(monkeypatch: pytest.MonkeyPatch, start: Callable[..., Any]) -> None:
    stand_in = types.SimpleNamespace(Popen=start, PIPE=subprocess.PIPE)
    monkeypatch.setattr(child, "subprocess", stand_in)
