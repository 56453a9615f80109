"""A `with` block closes what it opened, once, whether it ends or breaks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ammd.runtime.closing import ClosesItself
from ammd.runtime.device import Device
from ammd.runtime.engine import open_engine
from ammd.runtime.local_device import LocalConnection


def opened(name: str, request: pytest.FixtureRequest) -> ClosesItself:
    if name == "device":
        return Device(LocalConnection())
    path: Path = request.getfixturevalue(name)
    engine = open_engine(path, threads=1, context_tokens=16)
    assert isinstance(engine, ClosesItself)
    return engine


@pytest.mark.parametrize("name", ["tiny_checkpoint", "tiny_gguf", "tiny_onnx", "device"])
def test_a_block_closes_what_it_opened(
    name: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    one = opened(name, request)
    closed: list[str] = []
    close: Callable[[], None] = one.close
    monkeypatch.setattr(one, "close", lambda: closed.append(name))
    with one as given:
        assert given is one
        assert not closed
    assert closed == [name]
    with pytest.raises(ValueError, match="broken"), one:
        raise ValueError("broken")
    assert closed == [name] * 2
    close()
