"""What a token reads, against the gguf package's list of tensors, safetensors, and llama.cpp's own log of its cache."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from ammd.runtime import bandwidth, llama_engine
from ammd.runtime.architecture import Architecture, read_architecture
from ammd.runtime.ceiling import ceiling_of
from ammd.runtime.llama_engine import LlamaEngine
from ammd.runtime.llama_options import KvType, LlamaOptions

KV_TINY = 4 * 2 * 2 * 16  # layers, keys and values, groups, head size
ROW = {
    "settings": {"kv_cache_type": "f16"},
    "prompt_tokens": 100,
    "decode_tokens": 20,
    "decode_tokens_per_s": 50.0,
}


def tensor_bytes(path: Path) -> dict[str, int]:
    from gguf import GGUFReader

    return {tensor.name: int(tensor.n_bytes) for tensor in GGUFReader(path).tensors}


def test_tied_gguf_is_read_whole(tiny_gguf: Path) -> None:
    found = read_architecture(tiny_gguf)
    assert found.weight_bytes_per_token == sum(tensor_bytes(tiny_gguf).values())
    assert found.kv_values_per_token == KV_TINY


def test_of_an_embedding_beside_a_head_one_row_is_read(
    build_checkpoint: Callable[..., Path], make_gguf: Callable[..., Path], tmp_path: Path
) -> None:
    checkpoint = build_checkpoint(tmp_path / "untied", tied=False)
    path = make_gguf(checkpoint, tmp_path / "untied-f32.gguf")
    stored = tensor_bytes(path)
    expected = sum(stored.values()) - stored["token_embd.weight"] + 4 * 64  # a row of 64 numbers in float32
    assert read_architecture(path).weight_bytes_per_token == expected
    assert read_architecture(checkpoint) == read_architecture(path)


def test_onnx_reads_what_its_checkpoint_holds(
    tiny_onnx: Path, tiny_standard_onnx: Path, tiny_checkpoint: Path
) -> None:
    expected = read_architecture(tiny_checkpoint)
    for folder in (tiny_onnx, tiny_standard_onnx):
        found = read_architecture(folder)
        assert found.kv_values_per_token == expected.kv_values_per_token == KV_TINY
        # a row of the table, of rotations, and the graph's small constants
        assert found.weight_bytes_per_token == pytest.approx(expected.weight_bytes_per_token, rel=0.01)


def test_files_that_are_not_understood_tell_nothing(tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(b"nothing")
    assert read_architecture(path) == Architecture()


@pytest.mark.parametrize("kind", [KvType.F16, KvType.F32, KvType.Q8_0])
def test_cache_takes_what_llama_cpp_says(
    wide_checkpoint: Path,
    make_gguf: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: KvType,
) -> None:
    path = make_gguf(wide_checkpoint, tmp_path / "wide-f32.gguf")
    lines: list[tuple[int, str]] = []
    monkeypatch.setattr(llama_engine, "_log", lines)
    with LlamaEngine(path, threads=1, context_tokens=4096, options=LlamaOptions(kv_type=kind)) as engine:
        settings = engine.settings
    (told,) = re.findall(r"KV buffer size = +([\d.]+) MiB", "\n".join(text for _, text in lines))
    row = {"settings": settings, "prompt_tokens": 4000, "decode_tokens": 96}
    found = ceiling_of(row, read_architecture(path), bandwidth_bytes_per_s=None)
    assert found["kv_cache_bytes"] == pytest.approx(float(told) * 2**20, abs=0.005 * 2**20)  # two digits


def test_ceiling_is_bandwidth_over_what_a_token_reads() -> None:
    architecture = Architecture(weight_bytes_per_token=900_000, kv_values_per_token=500)
    found = ceiling_of(ROW, architecture, bandwidth_bytes_per_s=1.01e8)
    assert found["kv_bytes_per_token"] == 1000
    assert found["kv_cache_bytes"] == 120_000
    assert found["decode_ceiling_tokens_per_s"] == pytest.approx(
        100
    )  # 900,000 and 110 tokens of 1,000 bytes each
    assert found["decode_of_ceiling"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("architecture", "speed"),
    [
        (Architecture(weight_bytes_per_token=1, kv_values_per_token=1), None),
        (Architecture(kv_values_per_token=1), 1.0),
        (Architecture(weight_bytes_per_token=1), 1.0),
        (Architecture(weight_bytes_per_token=1, kv_values_per_token=1, window_tokens=119), 1.0),
    ],
)
def test_what_is_not_known_makes_no_ceiling(architecture: Architecture, speed: float | None) -> None:
    found = ceiling_of(ROW, architecture, bandwidth_bytes_per_s=speed)
    assert (found["decode_ceiling_tokens_per_s"], found["decode_of_ceiling"]) == (None, None)


def test_window_that_holds_the_context_changes_nothing() -> None:
    architecture = Architecture(weight_bytes_per_token=1, kv_values_per_token=1, window_tokens=120)
    assert ceiling_of(ROW, architecture, bandwidth_bytes_per_s=1.0)["kv_bytes_per_token"] == 2


def test_failed_row_still_tells_what_was_to_be_expected() -> None:
    architecture = Architecture(weight_bytes_per_token=100, kv_values_per_token=0)
    failed = {"prompt_tokens": 1, "decode_tokens": 1, "failure": {"ended": "x"}}
    found = ceiling_of(failed, architecture, bandwidth_bytes_per_s=1000.0)
    assert (found["decode_ceiling_tokens_per_s"], found["decode_of_ceiling"]) == (10, None)


def test_bandwidth_counts_each_byte_once_and_threads_share_them(monkeypatch: pytest.MonkeyPatch) -> None:
    now = {"s": 0.0}

    def clock() -> float:
        now["s"] += 0.5
        return now["s"]

    monkeypatch.setattr(bandwidth.time, "perf_counter", clock)
    monkeypatch.setattr(bandwidth, "buffer_bytes", lambda *_args, **_more: 8_000_000)
    found = bandwidth.measure({"threads": [1, 2]})
    assert found == {"bytes_per_s": [16_000_000, 16_000_000], "buffer_bytes": 8_000_000}


@pytest.mark.parametrize(
    ("cache", "free", "expected"),
    [
        (None, 8 << 30, 256 << 20),
        (64 << 20, 8 << 30, 512 << 20),
        (1 << 30, 64 << 30, 2 << 30),
        (0, 256 << 20, 64 << 20),
    ],
)
def test_buffer_is_far_larger_than_the_cache_and_fits(cache: int | None, free: int, expected: int) -> None:
    assert bandwidth.buffer_bytes(cache, free_bytes=free) == expected


def test_last_level_cache_is_the_largest(tmp_path: Path) -> None:
    for index, text in enumerate(("32K", "1024K", "32M")):
        folder = tmp_path / "cpu0" / "cache" / f"index{index}"
        folder.mkdir(parents=True)
        (folder / "size").write_text(f"{text}\n")
    assert bandwidth.last_level_cache_bytes(tmp_path) == 32 << 20
    assert bandwidth.last_level_cache_bytes(tmp_path / "none") is None
