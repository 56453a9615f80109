"""An ONNX graph in memory: read, search and write it, its weights in one file beside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ammd.errors import ExportError

from .external_weights import hold, is_outside, read_pieces, state_place

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

GRAPH = "model.onnx"
WEIGHTS = "model.onnx.data"
# Constants of fewer stay in the graph: onnx's own limit of 1 KiB, in which it counts the head of a Python object.
SMALLEST_OUTSIDE_BYTES = 991
Contents = Mapping[str, Callable[[], Iterable[bytes | memoryview]]]


def save_graph(model: ModelProto, folder: Path, contents: Contents | None = None) -> None:
    """Write a model of one graph; see `save_graphs`."""
    save_graphs({GRAPH: model}, folder, contents)


def save_graphs(models: Mapping[str, ModelProto], folder: Path, contents: Contents | None = None) -> None:
    """Write graphs, and their weights one after another into one file beside them, a piece in memory at a time.

    A tensor that several graphs hold under one name is written once; a trace also gives a name to different ones.

    Args:
        models: By file name. Their tensors are changed to say where they are then. Weights outside of them that
            `contents` does not give are looked for in the current folder.
        folder: It is created.
        contents: By name, what gives the bytes of a tensor that are nowhere yet.
    """
    import onnx

    folder.mkdir(parents=True, exist_ok=True)
    contents = contents or {}
    places: dict[tuple[str, bytes], tuple[int, int]] = {}
    with (folder / WEIGHTS).open("wb") as target:
        for tensor in (tensor for model in models.values() for tensor in model.graph.initializer):
            if _bytes(tensor) < SMALLEST_OUTSIDE_BYTES:
                hold(tensor, b"".join(_pieces(tensor, contents)))
                continue
            key = tensor.name, b"" if tensor.name in contents else _content(tensor)
            if key not in places:
                offset = target.tell()
                target.writelines(_pieces(tensor, contents))
                places[key] = offset, target.tell() - offset
            offset, length = places[key]
            state_place(tensor, file=WEIGHTS, offset=offset, length=length)
    for name, model in models.items():
        onnx.save(model, folder / name)


def _content(tensor: TensorProto) -> bytes:
    """Return what tells tensors of a name apart: their bytes, or where those lie."""
    if is_outside(tensor):
        return repr([(entry.key, entry.value) for entry in tensor.external_data]).encode()
    return bytes(tensor.raw_data)


def _pieces(tensor: TensorProto, contents: Contents) -> Iterable[bytes | memoryview]:
    return contents[tensor.name]() if tensor.name in contents else read_pieces(tensor)


def _bytes(tensor: TensorProto) -> int:
    from onnx import helper

    return int(math.prod(tensor.dims)) * int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def initializers(graph: GraphProto) -> Mapping[str, TensorProto]:
    """Return the stored tensors by name."""
    return {tensor.name: tensor for tensor in graph.initializer}


def set_initializers(graph: GraphProto, tensors: Iterable[TensorProto]) -> None:
    """Store these tensors and no others."""
    kept = list(tensors)
    del graph.initializer[:]
    graph.initializer.extend(kept)


def set_nodes(graph: GraphProto, nodes: Iterable[NodeProto]) -> None:
    """Let the graph consist of these nodes."""
    kept = list(nodes)
    del graph.node[:]
    graph.node.extend(kept)


def find_lookup(graph: GraphProto) -> NodeProto:
    """Return the node that takes the embeddings of the input's tokens.

    Raises:
        ExportError: There is none.
    """
    stored = initializers(graph)
    reshaped = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Reshape"}
    lookups = [
        node
        for node in graph.node
        if node.op_type == "Gather" and reshaped.get(node.input[1], node.input[1]) == "input_ids"
    ]
    found: NodeProto | None = next((node for node in lookups if node.input[0] in stored), None)
    if found is None:
        raise ExportError(
            "in the graph of this architecture no stored embedding is read by `input_ids`",
            hint="leave the `onnx-standard` schemes out",
        )
    return found


def weight_products(graph: GraphProto) -> list[tuple[NodeProto, TensorProto]]:
    """Return each product with a stored matrix, and the matrix: inputs by outputs, in float32."""
    from onnx import TensorProto

    stored = initializers(graph)
    return [
        (node, stored[node.input[1]])
        for node in graph.node
        if node.op_type == "MatMul"
        and node.input[1] in stored
        and len(stored[node.input[1]].dims) == 2
        and stored[node.input[1]].data_type == TensorProto.FLOAT
    ]
