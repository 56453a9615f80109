"""Store the matrices and the key-value cache of an ONNX graph in float16.

Products with stored matrices run in float16, where the runtime has such kernels; what is between them stays float32:
sums, norms, the rotary embedding's angles, scores and their softmax, logits. There float16 is not enough: squares in
a norm and scores of attention pass its largest number, and positions above 2048 its precision.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ammd.errors import ExportError

from .standard_graph import find_lookup, set_initializers, set_nodes, weight_products

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto, TensorProto

_WIDE = "/float32"
_NARROW = "/float16"


def halve_weights(graph: GraphProto) -> None:
    """Rewrite a float32 graph in place.

    Raises:
        ExportError: A weight is larger than float16 can hold.
    """
    from onnx import TensorProto

    lookup = find_lookup(graph)
    products = weight_products(graph)
    matrices = {weight.name for _, weight in products} | {lookup.input[0]}
    set_initializers(
        graph, [_halved(tensor) if tensor.name in matrices else tensor for tensor in graph.initializer]
    )
    cache = [
        value
        for value in [*graph.input, *graph.output]
        if value.name.startswith(("past_key_values.", "present."))
    ]
    for value in cache:
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    in_half = {node.output[0] for node, _ in products} | {lookup.output[0]}
    set_nodes(graph, _with_casts(graph, in_half=in_half, cache={value.name for value in cache}))


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


def _halved(tensor: TensorProto) -> TensorProto:
    import numpy as np
    from onnx import numpy_helper

    weights = numpy_helper.to_array(tensor)
    if np.abs(weights).max(initial=0) > np.finfo(np.float16).max:
        raise ExportError(
            f"`{tensor.name}` has weights that float16 cannot hold",
            hint="leave `onnx-standard-fp16` out",
            tensor=tensor.name,
        )
    return numpy_helper.from_array(weights.astype(np.float16), tensor.name)
