"""What llama.cpp is told, against what llama.cpp itself says that it does."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ammd.errors import EngineError, RecipeError
from ammd.pipeline.recipe import load_section
from ammd.runtime import bench, llama_engine
from ammd.runtime.artifact_ref import ArtifactRef
from ammd.runtime.llama_engine import LlamaEngine
from ammd.runtime.llama_options import KvType, LlamaOptions
from ammd.runtime.settings import BenchSettings

TEXT = [*range(5, 105)]
ONCE: Mapping[str, Any] = {
    "processes": 1,
    "max_processes": 1,
    "repetitions": 1,
    "max_repetitions": 1,
    "warmup": 0,
    "max_warmup": 0,
    "cold_loads": 0,
    "bandwidth": False,
}


@pytest.fixture
def log_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Open a file and give llama.cpp's own log of it."""

    def open_file(path: Path, **options: Any) -> str:
        lines: list[tuple[int, str]] = []
        monkeypatch.setattr(llama_engine, "_log", lines)
        with LlamaEngine(path, threads=1, context_tokens=256, options=LlamaOptions(**options)):
            return "\n".join(line for _, line in lines)

    return open_file


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {},
            ("flash_attn = enabled", "n_batch = 256", "K (f16)", "V (f16)"),
        ),  # a batch is at most the context
        ({"flash_attention": False, "kv_type": KvType.F32}, ("flash_attn = disabled", "K (f32)")),
        ({"batch_tokens": 64, "micro_batch_tokens": 32}, ("n_batch = 64", "n_ubatch = 32")),
        ({"memory_map": True}, ("load_mode = mmap",)),
    ],
)
def test_llama_cpp_says_that_it_does_what_it_was_told(
    tiny_gguf: Path, log_of: Callable[..., str], options: dict[str, Any], said: tuple[str, ...]
) -> None:
    log = re.sub(" +", " ", log_of(tiny_gguf, **options))
    assert [words for words in said if words not in log] == []


def test_quantized_cache_needs_heads_of_whole_blocks(
    tiny_gguf: Path,
    wide_checkpoint: Path,
    make_gguf: Callable[..., Path],
    log_of: Callable[..., str],
    tmp_path: Path,
) -> None:
    wide = make_gguf(wide_checkpoint, tmp_path / "wide-f32.gguf")  # heads of 64
    assert "K (q8_0)" in log_of(wide, kv_type=KvType.Q8_0)
    with pytest.raises(EngineError, match=r"cannot make a context of 256 tokens for .*: .*block size 32"):
        log_of(tiny_gguf, kv_type=KvType.Q8_0)  # heads of 16


def test_options_change_the_way_and_hardly_the_logits(tiny_gguf: Path) -> None:
    def logits(**options: Any) -> np.ndarray:
        with LlamaEngine(tiny_gguf, threads=1, context_tokens=256, options=LlamaOptions(**options)) as engine:
            prefilled = engine.prefill(TEXT).copy()
            whole = np.concatenate([rows.copy() for rows in engine.logits(TEXT, start=90)])
        np.testing.assert_allclose(whole[-1], prefilled, atol=2e-3)  # other batches: sums in another order
        return prefilled

    expected = logits(kv_type=KvType.F32)
    for options in (
        {"flash_attention": False},
        {"batch_tokens": 16, "micro_batch_tokens": 8},
        {"memory_map": True},
    ):
        # keys and values in float16 carry 11 bits, and the logits are below 1
        np.testing.assert_allclose(logits(**options), expected, atol=2e-3)


def test_benchmark_states_what_it_asked_for(tiny_gguf: Path) -> None:
    llama = {"flash_attention": False, "kv_type": "f32", "batch": 64, "micro_batch": 128, "mmap": True}
    settings = BenchSettings(threads=(1,), prompt_tokens=8, decode_tokens=2, llama=llama, **ONCE)
    row = bench.measure_artifacts([ArtifactRef(name="a", path=tiny_gguf)], settings)["a"]
    found = {key: row["settings"][key] for key in row["settings"] if key not in ("threads", "context_tokens")}
    assert found == {
        "batch_tokens": 64,
        "micro_batch_tokens": 64,  # never more than a batch
        "flash_attention": False,
        "memory_map": True,
        "weight_repacking": found["weight_repacking"],
        "kv_cache_type": "f32",
    }


def test_what_llama_cpp_cannot_do_is_refused_before_it_is_asked() -> None:
    with pytest.raises(RecipeError, match="`kv_type = q8_0` needs `flash_attention = true`"):
        load_section(BenchSettings, ("llama.kv_type=q8_0", "llama.flash_attention=false"))
    with pytest.raises(RecipeError, match="kv_type"):
        load_section(BenchSettings, ("llama.kv_type=q3_k",))
