"""Graphs with their weights beside them, compared with what onnx itself writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.helper import make_graph, make_model, make_node, make_tensor_value_info

from ammd.errors import ExportError
from ammd.export import external_weights
from ammd.export.standard_graph import GRAPH, WEIGHTS, find_lookup, save_graph


def _model(*lengths: int) -> Any:
    """Return one whose tensors have these many bytes."""
    numbers = np.random.default_rng(0)
    weights = {f"w{length}": numbers.integers(0, 255, (1, length), np.uint8) for length in lengths}
    value = make_tensor_value_info("x", onnx.TensorProto.UINT8, [1])
    nodes = [make_node("Gather", ["w4000", "x"], ["y"], name="/model/Gather")]
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    return make_model(make_graph(nodes, "small", [value], [], tensors), ir_version=9)


@pytest.mark.parametrize("lazily", [False, True])
def test_files_are_onnxs_own_to_the_byte(
    tmp_path: Path, lazily: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = (5000, 8, 990, 991, 1023, 1024, 4000)
    model = _model(*lengths)
    contents = {}
    if lazily:
        tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        for name in ("w5000", "w8"):
            content = tensors[name].raw_data
            contents[name] = lambda content=content: iter([content[:3], memoryview(content)[3:]])
            tensors[name].ClearField("raw_data")
    save_graph(model, tmp_path / "ours", contents)
    (tmp_path / "theirs").mkdir()
    options = {"save_as_external_data": True, "location": WEIGHTS, "size_threshold": 1024}
    onnx.save(_model(*lengths), tmp_path / "theirs" / GRAPH, **options)
    for name in (GRAPH, WEIGHTS):
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "theirs" / name).read_bytes()
    # And once more from where they lie, a few bytes at a time.
    monkeypatch.setattr(external_weights, "_PIECE_BYTES", 77)
    monkeypatch.chdir(tmp_path / "ours")
    save_graph(onnx.load(GRAPH, load_external_data=False), tmp_path / "again")
    assert (tmp_path / "again" / WEIGHTS).read_bytes() == (tmp_path / "ours" / WEIGHTS).read_bytes()
    assert (tmp_path / "again" / GRAPH).read_bytes() == (tmp_path / "ours" / GRAPH).read_bytes()


def test_weights_beside_a_graph_are_mapped(tmp_path: Path) -> None:
    wanted = _model(4000, 5000).graph.initializer
    save_graph(_model(4000, 5000), tmp_path)
    found = onnx.load(tmp_path / GRAPH, load_external_data=False).graph.initializer
    for one, other in zip(found, wanted, strict=True):
        array = external_weights.read_array(one, str(tmp_path))
        assert isinstance(array, np.memmap)
        assert np.array_equal(array, external_weights.read_array(other))


def test_a_graph_without_a_lookup_is_refused() -> None:
    with pytest.raises(ExportError, match="no stored embedding is read by `input_ids`"):
        find_lookup(_model(4000).graph)
