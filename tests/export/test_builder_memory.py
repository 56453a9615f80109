from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnxruntime.quantization.neural_compressor import weight_only

from ammd.export import builder_memory
from ammd.export.settings import OnnxSettings
from ammd.export.to_onnx import builder_options, write_onnx

rounds = [
    pytest.param(lambda data: (data, 4, 32, "asym", "uint", 1), weight_only.quant_tensor, id="rtn"),
    pytest.param(lambda data: (data, 8, 32, "sym", "uint", 1), weight_only.quant_tensor, id="symmetric"),
    pytest.param(lambda data: (data, 4, 64), weight_only.quant_tensor_k_quant_cpu, id="k_quant"),
]


@pytest.mark.filterwarnings(
    "ignore::RuntimeWarning"
)  # k_quant divides by a sum of zeros, theirs and ours alike
@pytest.mark.parametrize(("arguments", "function"), rounds)
def test_rounding_in_pieces_gives_what_rounding_at_once_gives(
    arguments: Callable[[Any], tuple[Any, ...]],
    function: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(builder_memory, "_PIECE_WEIGHTS", 640)
    data = np.random.default_rng(0).standard_normal((40, 192)).astype(np.float32)
    data[3] = 0.0
    whole = function(*arguments(data.copy()))
    pieces = builder_memory._in_pieces(function)(*arguments(data.copy()))
    for one, other in zip(whole, pieces, strict=True):
        assert one.shape == other.shape
        np.testing.assert_array_equal(one.astype(other.dtype), other)


def test_files_are_the_builders_own_to_the_byte(tiny_checkpoint: Path, tmp_path: Path) -> None:
    write_onnx(tiny_checkpoint, tmp_path / "ours")
    options = builder_options("int4", OnnxSettings())
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(tiny_checkpoint)]
    paths = ["-o", str(tmp_path / "theirs"), "-c", str(tmp_path / "cache")]
    extra = ["-p", "int4", "-e", "cpu", "--extra_options", *options]
    subprocess.run([*command, *paths, *extra], check=True, capture_output=True)
    data = [(tmp_path / name / "model.onnx.data").read_bytes() for name in ("ours", "theirs")]
    assert data[0] == data[1]
    ours, theirs = (
        onnx.load(tmp_path / name / "model.onnx", load_external_data=False) for name in ("ours", "theirs")
    )
    del theirs.metadata_props[:]  # ours says what we say of the model, nothing here
    assert ours == theirs
