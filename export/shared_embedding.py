"""Let an int8 ONNX model with a tied head read its embedding from the head.

onnxruntime-genai's builder shares a quantized matrix between both in int4 models only; in an int8 model it stores
the embedding once more in float32, which made the quickstart's student 239 MiB instead of 131. The lookup that it
writes for int4 models with an int8 head is written here for int8 models: the same matrix, the same operator.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .external_weights import rewrite_weights

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto


def share_embedding(graph_path: Path, weights_path: Path) -> None:
    """Rewrite a model of the builder in place, if it has a float lookup beside an int8 head of the same shape.

    Only for a checkpoint whose head is tied: the shapes of an untied one are the same.
    """
    import onnx

    model = onnx.load(graph_path, load_external_data=False)
    graph = model.graph
    lookup = next(
        (node for node in graph.node if node.op_type == "Gather" and "embed_tokens" in node.name), None
    )
    head = next(
        (node for node in graph.node if node.op_type == "MatMulNBits" and "lm_head" in node.name), None
    )
    if lookup is None or head is None or _attribute(head, "bits") != 8:
        return
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    rows, columns = _attribute(head, "N"), _attribute(head, "K")
    if shapes.get(lookup.input[0]) != [rows, columns]:
        return
    table = lookup.input[0]
    shape = onnx.helper.make_tensor(f"{lookup.name}/shape", onnx.TensorProto.INT64, [2], [rows, columns])
    flat = onnx.helper.make_node(
        "Reshape", [head.input[1], shape.name], [f"{lookup.name}/flat"], name=f"{lookup.name}/Reshape"
    )
    gather = onnx.helper.make_node(
        "GatherBlockQuantized",
        [flat.output[0], lookup.input[1], *head.input[2:4]],
        list(lookup.output),
        name=f"{lookup.name}BlockQuantized",
        domain="com.microsoft",
        bits=8,
        block_size=_attribute(head, "block_size"),
        gather_axis=0,
        quantize_axis=1,
    )
    place = list(graph.node).index(lookup)
    graph.node.remove(lookup)
    graph.node.insert(place, gather)
    graph.node.insert(place, flat)
    graph.initializer.append(shape)
    _drop(graph, table)
    rewrite_weights(graph, weights_path)
    onnx.save(model, graph_path)


def _attribute(node: NodeProto, name: str) -> int:
    return next(int(entry.i) for entry in node.attribute if entry.name == name)


def _drop(graph: GraphProto, name: str) -> None:
    graph.initializer.remove(next(tensor for tensor in graph.initializer if tensor.name == name))
    for value in [value for value in graph.value_info if value.name == name]:
        graph.value_info.remove(value)
