from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter, quants

from ammd.errors import ExportError
from ammd.export.gguf_contents import Fallback, read_contents, read_matrices


def _write(path: Path, types: dict[str, GGMLQuantizationType], *, row: int = 64) -> Path:
    writer = GGUFWriter(path, "llama")
    writer.add_tensor("output_norm.weight", np.ones(row, dtype=np.float32))
    for name, kind in types.items():
        data = np.linspace(-1, 1, 8 * row, dtype=np.float32).reshape(8, row)
        if kind is GGMLQuantizationType.F16:
            writer.add_tensor(name, data.astype(np.float16))
        else:
            writer.add_tensor(name, quants.quantize(data, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_bits_per_weight_count_every_tensor(tmp_path: Path) -> None:
    contents = read_contents(_write(tmp_path / "a.gguf", {"m": GGMLQuantizationType.Q8_0}), meant={})
    assert contents.weights == 64 + 8 * 64
    assert contents.weight_bytes == 64 * 4 + 8 * 64 * 34 // 32  # Q8_0: 32 bytes and a half-float a block
    assert contents.bits_per_weight == 8 * contents.weight_bytes / contents.weights


def test_tensors_that_are_stored_otherwise_are_named_with_what_was_meant(tmp_path: Path) -> None:
    types = {"a": GGMLQuantizationType.Q5_0, "b": GGMLQuantizationType.Q8_0, "c": GGMLQuantizationType.F16}
    path = _write(tmp_path / "a.gguf", types)
    assert read_contents(path, meant={"a": "Q4_K", "c": "Q8_0"}).fallbacks == (
        Fallback(tensor="a", asked="Q4_K", stored="Q5_0", row_weights=64),
        Fallback(tensor="c", asked="Q8_0", stored="F16", row_weights=64),
    )
    assert read_contents(path, meant={}).fallbacks == ()


@pytest.mark.parametrize("name", ["token_embd.weight", "output.weight"])
def test_a_head_that_is_silently_finer_is_named(tmp_path: Path, name: str) -> None:
    types = {"token_embd.weight": GGMLQuantizationType.Q8_0, name: GGMLQuantizationType.Q8_0}
    path = _write(tmp_path / "a.gguf", types)
    (head,) = read_contents(path, meant={}, head="Q6_K").fallbacks
    assert head == Fallback(tensor=name, asked="Q6_K", stored="Q8_0", row_weights=64)
    assert read_contents(path, meant={}, head="Q8_0").fallbacks == ()  # it is what was meant


def test_only_matrices_are_read_as_such(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.gguf", {"a": GGMLQuantizationType.F16})
    assert [tensor.name for tensor in read_matrices(path)] == ["a"]


@pytest.mark.parametrize("data", [b"", b"GGUF", b"not a gguf file at all, but long enough for a header"])
def test_file_that_is_no_gguf_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.gguf").write_bytes(data)
    with pytest.raises(ExportError, match="cannot be read as GGUF"):
        read_contents(tmp_path / "a.gguf", meant={})


def test_file_without_tensors_is_refused(tmp_path: Path) -> None:
    writer = GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ExportError, match="holds no tensors"):
        read_contents(tmp_path / "a.gguf", meant={})
