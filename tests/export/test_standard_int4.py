"""Rounding of a small graph in standard operators, which needs no exporter."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info

from ammd.export.settings import OnnxSettings
from ammd.export.standard_int4 import quantize_int4

IDS = np.array([[3, 1, 29]])
PRODUCT = "/model/layers.1/mlp/up_proj/MatMul"  # of the three with 4 bits


def _graph() -> Any:
    """Return an embedding, four layers of one product each, and a head that is tied to the embedding."""
    numbers = np.random.default_rng(0)
    names = [
        "/model/layers.0/mlp/down_proj/MatMul",
        PRODUCT,
        "/model/layers.2/mlp/up_proj/MatMul",
        "/model/layers.3/mlp/up_proj/MatMul",
    ]
    weights = {name: numbers.standard_normal((64, 64)).astype(np.float32) / 8 for name in names}
    table = numbers.standard_normal((64, 32)).astype(np.float32)
    nodes = [
        make_node("Gather", ["head", "input_ids"], ["turned"], name="/model/embed_tokens/Gather", axis=1),
        make_node("Transpose", ["turned"], ["hidden_0"], name="/model/embed_tokens/Turn", perm=[1, 2, 0]),
    ]
    for place, name in enumerate(names):
        nodes.append(make_node("MatMul", [f"hidden_{place}", name], [f"hidden_{place + 1}"], name=name))
    nodes.append(make_node("MatMul", ["hidden_4", "head"], ["logits"], name="/lm_head/MatMul"))
    graph = make_graph(
        nodes,
        "small",
        [make_tensor_value_info("input_ids", onnx.TensorProto.INT64, [1, None])],
        [make_tensor_value_info("logits", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(values, name) for name, values in (weights | {"head": table}).items()],
    )
    return make_model(graph, opset_imports=[make_opsetid("", 18)], ir_version=9)


def _logits(model: Any) -> Any:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"input_ids": IDS})[0]


def _attributes(model: Any) -> dict[str, dict[str, int]]:
    """Return those of each product in blocks, by its name before it was one."""
    return {
        node.name.removesuffix("_Q4").removesuffix("_Q8"): {entry.name: entry.i for entry in node.attribute}
        for node in model.graph.node
        if node.op_type == "MatMulNBits"
    }


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # k_quant divides by zero in its search
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("algorithm", ["rtn", "k_quant", "mlas"])
def test_each_algorithm_rounds_the_same_products_to_the_same_bits(algorithm: Any, symmetric: bool) -> None:
    wanted = _logits(_graph())
    made, _ = quantize_int4(
        _graph(), OnnxSettings(algorithm=algorithm, symmetric=symmetric, accuracy_level=1)
    )
    bits = {name: found["bits"] for name, found in _attributes(made).items()}
    assert len(bits) == 5
    assert [name for name, found in bits.items() if found == 8] == [
        "/model/layers.0/mlp/down_proj/MatMul",
        "/lm_head/MatMul",
    ]
    assert not [tensor.name for tensor in made.graph.initializer if tensor.name == "head"]  # stored once
    # Three of five products at 4 bits lose some percent; a wrong lookup of the embedding makes them unrelated.
    assert np.corrcoef(_logits(made).ravel(), wanted.ravel())[0, 1] > 0.98


def test_without_zero_points_mlas_uses_all_sixteen_steps_of_a_block() -> None:
    made, _ = quantize_int4(_graph(), OnnxSettings(algorithm="mlas", symmetric=True))
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    (node,) = [node for node in made.graph.node if node.name.startswith(PRODUCT)]
    assert len(node.input) == 3
    low, high = stored[node.input[1]] & 15, stored[node.input[1]] >> 4
    steps = np.stack([low, high], axis=-1).reshape(64, 2, 32).astype(int) - 8
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in _graph().graph.initializer}
    blocks = weights[PRODUCT].T.reshape(64, 2, 32)
    largest = np.take_along_axis(blocks, abs(blocks).argmax(-1, keepdims=True), -1)
    scales = stored[node.input[2]].reshape(64, 2, 1)
    np.testing.assert_allclose(scales, largest / -8, rtol=1e-6)  # signed: the largest weight is step -8
    assert np.abs(steps * scales - blocks).max() <= np.abs(scales).max() * 1.0001  # float32


@pytest.mark.parametrize("algorithm", ["rtn", "mlas"])
def test_a_head_that_stays_float32_stays_the_embedding_too(algorithm: Any) -> None:
    made, _ = quantize_int4(_graph(), OnnxSettings(algorithm=algorithm, head="float32"))
    (head,) = [node for node in made.graph.node if node.output[0] == "logits"]
    assert (head.op_type, list(head.input)[1]) == ("MatMul", "head")
    (lookup,) = [node for node in made.graph.node if node.op_type == "Gather"]
    assert lookup.input[0] == "head"
    assert len(_attributes(made)) == 4
    assert _logits(made).shape == (1, 3, 32)
