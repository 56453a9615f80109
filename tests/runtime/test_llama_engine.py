from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ammd.errors import EngineError
from ammd.runtime.llama_engine import LlamaEngine


def test_damaged_file_is_refused_in_llama_cpps_words(tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(EngineError, match=r"llama.cpp cannot load `.*bad\.gguf`: .*failed to"):
        LlamaEngine(path, threads=1, context_tokens=16)


def test_library_is_silent(tiny_gguf: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with LlamaEngine(tiny_gguf, threads=1, context_tokens=16) as engine:
        engine.prefill([5, 6])
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""


def test_logits_are_a_view_on_the_librarys_memory(tiny_gguf: Path) -> None:
    with LlamaEngine(tiny_gguf, threads=1, context_tokens=16) as engine:
        first = engine.prefill([5, 6])
        second = engine.decode(7)
        assert not first.flags.owndata
        assert second is first


def test_repacking_is_off_where_amx_would_crash(tiny_gguf: Path) -> None:
    with LlamaEngine(tiny_gguf, threads=1, context_tokens=16) as engine:
        info = engine._library.llama_print_system_info()
        assert engine.settings["weight_repacking"] is (b"AMX_INT8 = 1" not in info)


@pytest.mark.real
def test_packaged_model_speaks_as_its_checkpoint(packaged_gguf: Path, smollm2_checkpoint: Path) -> None:
    """The Q4_1 file against its dequantized twin: only the products differ, not the weights."""
    from ammd.runtime.divergence import row_divergences
    from ammd.runtime.torch_engine import TorchEngine

    exact = TorchEngine(smollm2_checkpoint, threads=2, context_tokens=128)
    with LlamaEngine(packaged_gguf, threads=2, context_tokens=128) as engine:
        chat = [{"role": "user", "content": "What is the capital of France? Ünï 中文 12345"}]
        ids = engine.tokenize(engine.render_chat(chat))
        assert ids == exact.tokenize(exact.render_chat(chat))
        found = np.concatenate([rows.copy() for rows in engine.logits(ids)])
    expected = np.concatenate(list(exact.logits(ids)))
    # llama.cpp rounds activations to 8 bits before a quantized product: hundredths of a nat
    assert row_divergences(expected, found).mean() < 0.05
