from __future__ import annotations

import signal
import sys
import types
from pathlib import Path

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
    script = f"import os; print('about to load', flush=True); os.kill(os.getpid(), {signal.SIGKILL})"
    real = child.subprocess.Popen
    monkeypatch.setattr(
        child,
        "subprocess",
        types.SimpleNamespace(
            Popen=lambda command, **options: real([sys.executable, "-c", script], **options),
            DEVNULL=child.subprocess.DEVNULL,
        ),
    )
    with pytest.raises(EngineError, match="was killed by SIGKILL") as caught:
        child.call("bench_child:measure", {})
    assert "about to load" in str(caught.value)
    assert "out of memory" in caught.value.hint
    assert caught.value.facts["status"] == -signal.SIGKILL


def test_interrupt_leaves_no_process_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    class Interrupted(child.subprocess.Popen):  # type: ignore[misc, type-arg]
        def wait(self, timeout: float | None = None) -> int:
            if not started:
                started.append(self)
                raise KeyboardInterrupt
            return super().wait(timeout)

    monkeypatch.setattr(
        child,
        "subprocess",
        types.SimpleNamespace(Popen=Interrupted, DEVNULL=child.subprocess.DEVNULL),
    )
    with pytest.raises(KeyboardInterrupt):
        child.call("bench_child:measure", {})
    assert started[0].poll() is not None
