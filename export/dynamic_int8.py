"""Quantize the matrices of an ONNX graph to int8, with standard operators.

A matrix has one scale for each output, symmetric about zero, as onnxruntime's `quantize_dynamic` with `per_channel`
makes it; the lookup's embedding has one for each token. In a product, the input is rounded to 8 bits by one scale
that the runtime takes from its range (DynamicQuantizeLinear, MatMulInteger).

Some inputs do not bear that. The last product of an MLP in a few layers sees single values a thousand times the
others, and one scale for both rounds the others to zero. So the float32 graph reads tokens from all over the
vocabulary first, and where the step would be wider than `_WIDEST_STEP` times the median magnitude, the product stays
float32 and its matrix is spread out again from int8 (DequantizeLinear), which costs time in those layers only. On
SmolLM2-135M-Instruct, over 451 response tokens, with tokens a second of processor time:

    step at most    products in float32    KL to the float32 model
    any                       0            0.616 nats
    2                         6            0.127
    1                        15            0.081    45 tokens a second   <- chosen
    0.5                      42            0.034    15
    none                    211            0.006

All eight bits are used. `reduce_range`, one bit less, is for x86 processors before VNNI, whose sums of 8-bit products
may overflow; ARM processors and newer x86 ones do not need it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .external_weights import read_array, rows_in_pieces
from .standard_graph import Contents, find_lookup, initializers, set_initializers, set_nodes, weight_products

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from onnx import GraphProto, NodeProto, TensorProto

_LARGEST = 127
_STEPS = 255  # of an input's range
_WIDEST_STEP = 1.0  # in median magnitudes of the input
_READ_TOKENS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stored:
    """A matrix in int8."""

    values: TensorProto  # of the matrix's shape, without its numbers
    scales: TensorProto  # float32, one for each output or token
    pieces: Callable[[], Iterable[memoryview]]  # the numbers of `values`


def quantize_int8(graph: GraphProto, *, float_products: Collection[str] = ()) -> Contents:
    """Rewrite a float32 graph in place, and return what gives its matrices.

    Args:
        graph: As the exporter leaves it.
        float_products: Names of products that are computed in float32, from matrices in int8.
    """
    products = {node.name: weight.name for node, weight in weight_products(graph)}
    lookup = find_lookup(graph)
    weights = initializers(graph)
    stored = {name: _quantize(weights[name], summed_axis=0) for name in products.values()}
    if lookup.input[0] not in stored:
        summed = 1 - _lookup_axis(lookup)  # an encoder's lookup may read columns of its decoder's head
        stored[lookup.input[0]] = _quantize(weights[lookup.input[0]], summed_axis=summed)
    nodes: list[NodeProto] = []
    rounded: set[str] = set()
    for node in graph.node:
        if node.name == lookup.name:
            nodes += _lookup(node, stored[node.input[0]])
        elif node.name not in products:
            nodes.append(node)
        elif node.name in float_products:
            nodes += _float_product(node, stored[node.input[1]])
        else:
            source = node.input[0]
            if source not in rounded:
                nodes.append(_rounded_input(source))
                rounded.add(source)
            nodes += _int8_product(node, stored[node.input[1]])
    set_nodes(graph, nodes)
    return _put(graph, stored)


def quantize_lookup(graph: GraphProto) -> Contents:
    """Store an embedding of its own in int8, one scale for each token, and leave the products as they are."""
    lookup = find_lookup(graph)
    table = lookup.input[0]
    stored = _quantize(initializers(graph)[table], summed_axis=1)
    nodes: list[NodeProto] = []
    for node in graph.node:
        nodes += _lookup(node, stored) if node.name == lookup.name else [node]
    set_nodes(graph, nodes)
    return _put(graph, {table: stored})


def wide_products(
    path: Path, feed: Mapping[str, NDArray[Any]] | None = None, *, widest_step: float = _WIDEST_STEP
) -> frozenset[str]:
    """Return the names of the products whose input 8 bits cannot hold, measured on a float32 graph.

    Args:
        path: Of the graph.
        feed: Its inputs; absent, tokens from all over the vocabulary, with nothing before them.
        widest_step: The widest that is borne, in median magnitudes of the input.
    """
    import onnx
    import onnxruntime

    model = onnx.load(path, load_external_data=False)
    inputs = {node.name: node.input[0] for node, _ in weight_products(model.graph)}
    sources = list(dict.fromkeys(inputs.values()))
    model.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in sources
    )
    probe = path.with_name("probe.onnx")
    onnx.save(model, probe)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_prepacking", "1")  # a second copy of all matrices
    session = onnxruntime.InferenceSession(probe, options, providers=["CPUExecutionProvider"])
    read = dict(zip(sources, session.run(sources, feed or _sequence(session)), strict=True))
    probe.unlink()
    return frozenset(name for name, source in inputs.items() if _step(read[source]) > widest_step)


def spread_tokens(vocabulary: int) -> NDArray[np.int64]:
    """Return some tokens from all over a vocabulary. [1, T]."""
    import numpy as np

    return np.arange(_READ_TOKENS, dtype=np.int64)[None] * (vocabulary // _READ_TOKENS)


def _sequence(session: Any) -> dict[str, NDArray[Any]]:
    import numpy as np

    places = np.arange(_READ_TOKENS, dtype=np.int64)[None]
    feed: dict[str, NDArray[Any]] = {
        "input_ids": spread_tokens(session.get_outputs()[0].shape[2]),
        "attention_mask": np.ones_like(places),
        "position_ids": places,
    }
    for value in session.get_inputs():
        if value.name.startswith("past_key_values."):
            feed[value.name] = np.zeros((1, value.shape[1], 0, value.shape[3]), np.float32)
    return feed


def _step(values: NDArray[np.float32]) -> float:
    """Return the width of one of 255 steps over the range of `values`, in their median magnitudes."""
    import numpy as np

    return float((values.max() - values.min()) / _STEPS / max(float(np.median(np.abs(values))), 1e-30))


def _put(graph: GraphProto, stored: Mapping[str, _Stored]) -> Contents:
    """Let the graph hold these instead of the matrices that they were made of, by whose names they are given."""
    kept = [tensor for tensor in graph.initializer if tensor.name not in stored]
    set_initializers(graph, [*kept, *(part for one in stored.values() for part in (one.values, one.scales))])
    return {one.values.name: one.pieces for one in stored.values()}


def _quantize(tensor: TensorProto, *, summed_axis: int) -> _Stored:
    """Round a matrix; the scales stretch along the axis that a product does not sum over."""
    import numpy as np
    from onnx import TensorProto, numpy_helper

    weights = read_array(tensor)
    largest = [np.abs(rows).max(axis=summed_axis, keepdims=True) for rows in rows_in_pieces(weights)]
    joined = np.max(largest, axis=0) if summed_axis == 0 else np.concatenate(largest)
    scales = np.where(joined > 0, joined / np.float32(_LARGEST), np.float32(1)).astype(np.float32)
    return _Stored(
        values=TensorProto(name=f"{tensor.name}/int8", dims=tensor.dims, data_type=TensorProto.INT8),
        scales=numpy_helper.from_array(scales[0] if summed_axis == 0 else scales, f"{tensor.name}/scale"),
        pieces=partial(_rounded, weights, np.broadcast_to(scales, weights.shape)),
    )


def _rounded(weights: NDArray[np.float32], scales: NDArray[np.float32]) -> Iterator[memoryview]:
    import numpy as np

    for rows, steps in zip(rows_in_pieces(weights), rows_in_pieces(scales), strict=True):
        yield np.rint(rows / steps).astype(np.int8).data


def _rounded_input(source: str) -> NodeProto:
    from onnx import helper

    outputs = [f"{source}/uint8", f"{source}/scale", f"{source}/zero_point"]
    return helper.make_node(
        "DynamicQuantizeLinear", [source], outputs, name=f"{source}/DynamicQuantizeLinear"
    )


def _int8_product(node: NodeProto, stored: _Stored) -> list[NodeProto]:
    from onnx import TensorProto, helper

    name, source = node.name, node.input[0]
    return [
        helper.make_node(
            "MatMulInteger",
            [f"{source}/uint8", stored.values.name, f"{source}/zero_point"],
            [f"{name}/int32"],
            name=name,
        ),
        helper.make_node(
            "Cast", [f"{name}/int32"], [f"{name}/float32"], name=f"{name}/Cast", to=TensorProto.FLOAT
        ),
        helper.make_node(
            "Mul", [f"{source}/scale", stored.scales.name], [f"{name}/scale"], name=f"{name}/Mul_scale"
        ),
        helper.make_node("Mul", [f"{name}/float32", f"{name}/scale"], [node.output[0]], name=f"{name}/Mul"),
    ]


def _float_product(node: NodeProto, stored: _Stored) -> list[NodeProto]:
    from onnx import helper

    spread = helper.make_node(
        "DequantizeLinear",
        [stored.values.name, stored.scales.name],
        [f"{node.name}/weights"],
        name=f"{node.name}/DequantizeLinear",
        axis=1,
    )
    product = helper.make_node(
        "MatMul", [node.input[0], f"{node.name}/weights"], list(node.output), name=node.name
    )
    return [spread, product]


def _lookup(node: NodeProto, stored: _Stored) -> list[NodeProto]:
    from onnx import TensorProto, helper

    name, tokens = node.name, node.input[1]
    axis = _lookup_axis(node)
    return [
        helper.make_node("Gather", [stored.values.name, tokens], [f"{name}/int8"], name=name, axis=axis),
        helper.make_node(
            "Gather", [stored.scales.name, tokens], [f"{name}/scale"], name=f"{name}/Gather_scale"
        ),
        helper.make_node(
            "Cast", [f"{name}/int8"], [f"{name}/float32"], name=f"{name}/Cast", to=TensorProto.FLOAT
        ),
        helper.make_node("Mul", [f"{name}/float32", f"{name}/scale"], list(node.output), name=f"{name}/Mul"),
    ]


def _lookup_axis(node: NodeProto) -> int:
    return next((int(entry.i) for entry in node.attribute if entry.name == "axis"), 0)
