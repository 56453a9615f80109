from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ammd.errors import EngineError
from ammd.runtime.genai_engine import GenaiEngine


def test_damaged_folder_is_refused_in_the_librarys_words(tmp_path: Path) -> None:
    (tmp_path / "genai_config.json").write_text("{}")
    with pytest.raises(EngineError, match="onnxruntime-genai cannot load"):
        GenaiEngine(tmp_path, threads=1, context_tokens=16)


def test_cache_is_as_long_as_the_context_asked_for(tiny_onnx: Path) -> None:
    with GenaiEngine(tiny_onnx, threads=1, context_tokens=24) as engine:
        engine.prefill([5, 6])
        assert engine._generator.get_input("past_key_values.0.key").shape[2] == 24


def test_graph_that_keeps_the_last_position_is_asked_token_by_token(
    tiny_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [5, 6, 7, 8, 9]
    with GenaiEngine(tiny_onnx, threads=1, context_tokens=24) as engine:
        whole = np.concatenate(list(engine.logits(ids, start=1)))
        engine._generator = Pruned(engine._generator)
        chunks = list(engine.logits(ids, start=1))
    assert [len(rows) for rows in chunks] == [1, 1, 1, 1]
    np.testing.assert_allclose(np.concatenate(chunks), whole, atol=1e-4)  # float32 in another order


@pytest.mark.real
def test_int4_model_stays_near_its_checkpoint(smollm2_checkpoint: Path, tmp_path: Path) -> None:
    from ammd.export.to_onnx import write_onnx
    from ammd.runtime.divergence import row_divergences
    from ammd.runtime.torch_engine import TorchEngine

    write_onnx(smollm2_checkpoint, tmp_path / "onnx-int4")
    exact = TorchEngine(smollm2_checkpoint, threads=2, context_tokens=128)
    with GenaiEngine(tmp_path / "onnx-int4", threads=2, context_tokens=128) as engine:
        chat = [{"role": "user", "content": "What is the capital of France? Ünï 中文 12345"}]
        ids = engine.tokenize(engine.render_chat(chat))
        assert ids == exact.tokenize(exact.render_chat(chat))
        assert engine.end_token_ids == exact.end_token_ids
        found = np.concatenate(list(engine.logits(ids)))
    expected = np.concatenate(list(exact.logits(ids)))
    # 4-bit weights of a 135M model: some tenths of a nat; a wrong graph is several nats away
    assert row_divergences(expected, found).mean() < 1


class Pruned:
    """A generator over a graph whose head sees the last position only."""

    def __init__(self, generator: Any) -> None:
        self._generator = generator

    def __getattr__(self, name: str) -> Any:
        return getattr(self._generator, name)

    def get_output(self, name: str) -> np.ndarray:
        output: np.ndarray = self._generator.get_output(name)[:, -1:]
        return output
