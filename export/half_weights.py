"""Store the matrices and the key-value cache of an ONNX graph in float16.

Products with stored matrices run in float16, where the runtime has such kernels; what is between them stays float32:
sums, norms, the rotary embedding's angles, scores and their softmax, logits. There float16 is not enough: squares in
a norm and scores of attention pass its largest number, and positions above 2048 its precision.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from ammd.errors import ExportError

from .external_weights import read_array, rows_in_pieces
from .standard_graph import Contents, find_lookup, set_nodes, weight_products

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from onnx import GraphProto, NodeProto

_WIDE = "/float32"
_NARROW = "/float16"


def halve_weights(graph: GraphProto) -> Contents:
    """Rewrite a float32 graph in place, and return what gives its matrices.

    These raise ExportError where a weight is larger than float16 can hold.
    """
    from onnx import TensorProto

    lookup = find_lookup(graph)
    products = weight_products(graph)
    matrices = {weight.name for _, weight in products} | {lookup.input[0]}
    contents = {}
    for tensor in graph.initializer:
        if tensor.name in matrices:
            contents[tensor.name] = partial(_halves, tensor.name, read_array(tensor))
            tensor.data_type = TensorProto.FLOAT16
    cache = [
        value
        for value in [*graph.input, *graph.output]
        if value.name.startswith(("past_key_values.", "present."))
    ]
    for value in cache:
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    in_half = {node.output[0] for node, _ in products} | {lookup.output[0]}
    set_nodes(graph, _with_casts(graph, in_half=in_half, cache={value.name for value in cache}))
    return contents


def _with_casts(graph: GraphProto, *, in_half: set[str], cache: set[str]) -> list[NodeProto]:
    """Return the nodes with casts around those that make `in_half` and those that append to the cache."""
    nodes: list[NodeProto] = []
    narrowed: set[str] = set()
    outputs = {value.name for value in graph.output}

    def narrow(node: NodeProto, place: int) -> None:
        name = node.input[place]
        if name not in narrowed:
            nodes.append(_cast(name, name + _NARROW, to_half=True))
            narrowed.add(name)
        node.input[place] = name + _NARROW

    for node in graph.node:
        made = node.output[0]
        if made in in_half:
            if node.op_type == "MatMul":
                narrow(node, 0)
            node.output[0] = made + _NARROW
            nodes += [node, _cast(made + _NARROW, made, to_half=False)]
        elif made in cache:
            for place, name in enumerate(node.input):
                if name not in cache:
                    narrow(node, place)
            nodes += [node, _cast(made, made + _WIDE, to_half=False)]
        else:
            for place, name in enumerate(node.input):
                if name in cache and name in outputs and node.op_type != "Shape":
                    node.input[place] = name + _WIDE
            nodes.append(node)
    return nodes


def _cast(source: str, target: str, *, to_half: bool) -> NodeProto:
    from onnx import TensorProto, helper

    kind = TensorProto.FLOAT16 if to_half else TensorProto.FLOAT
    return helper.make_node("Cast", [source], [target], name=f"{target}/Cast", to=kind)


def _halves(name: str, matrix: NDArray[np.float32]) -> Iterator[memoryview]:
    import numpy as np

    for rows in rows_in_pieces(matrix):
        if np.abs(rows).max(initial=0) > np.finfo(np.float16).max:
            raise ExportError(
                f"`{name}` has weights that float16 cannot hold",
                hint="leave `onnx-standard-fp16` out",
                tensor=name,
            )
        yield rows.astype(np.float16).data
