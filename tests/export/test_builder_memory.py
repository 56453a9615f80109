from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnxruntime.quantization.matmul_nbits_quantizer import (
    DefaultWeightOnlyQuantConfig,
    DefaultWeightOnlyQuantizer,
)
from onnxruntime.quantization.neural_compressor import weight_only

from ammd.export import builder_memory, external_weights, to_onnx
from ammd.export.settings import OnnxSettings
from ammd.export.to_onnx import builder_options, write_onnx

PLAIN = OnnxSettings(algorithm="mlas", symmetric=True, head="int4", sensitive_layers="int4")
needs_new_builder = pytest.mark.skipif(
    to_onnx._release("onnxruntime-genai") < to_onnx._FIRST_WITH_NEW_OPTIONS,
    reason="older builders tie it wrongly",
)

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
    monkeypatch.setattr(external_weights, "_PIECE_WEIGHTS", 640)
    data = np.random.default_rng(0).standard_normal((40, 192)).astype(np.float32)
    data[3] = 0.0
    whole = function(*arguments(data.copy()))
    pieces = builder_memory._in_pieces(function)(*arguments(data.copy()))
    for one, other in zip(whole, pieces, strict=True):
        assert one.shape == other.shape
        np.testing.assert_array_equal(one.astype(other.dtype), other)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_columns_rounded_in_pieces_are_those_rounded_at_once(
    bits: int, symmetric: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(external_weights, "_PIECE_WEIGHTS", 640)
    config = DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=symmetric, bits=bits)
    quantizer = DefaultWeightOnlyQuantizer(config)
    data = np.random.default_rng(0).standard_normal((72, 45)).astype(np.float32)  # a block that is not full
    data[:, 3] = 0.0
    whole = quantizer.qbits_block_quant(data)
    pieces = builder_memory._by_columns(DefaultWeightOnlyQuantizer.qbits_block_quant)(quantizer, data)
    for one, other in zip(whole, pieces, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(OnnxSettings(), id="our choices"),
        pytest.param(PLAIN, id="the builder's choices", marks=needs_new_builder),
    ],
)
def test_files_are_the_builders_own_to_the_byte(
    tiny_checkpoint: Path, tmp_path: Path, settings: OnnxSettings
) -> None:
    write_onnx(tiny_checkpoint, tmp_path / "ours", settings=settings)
    options = () if settings is PLAIN else builder_options("int4", settings)
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(tiny_checkpoint)]
    paths = ["-o", str(tmp_path / "theirs"), "-c", str(tmp_path / "cache")]
    extra = ["-p", "int4", "-e", "cpu", "--extra_options", "hf_token=false", *options]
    subprocess.run([*command, *paths, *extra], check=True, capture_output=True)
    data = [(tmp_path / name / "model.onnx.data").read_bytes() for name in ("ours", "theirs")]
    assert data[0] == data[1]
    ours, theirs = (
        onnx.load(tmp_path / name / "model.onnx", load_external_data=False) for name in ("ours", "theirs")
    )
    del theirs.metadata_props[:]  # ours says what we say of the model, nothing here
    assert ours == theirs
