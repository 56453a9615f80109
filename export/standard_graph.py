"""An ONNX graph in memory: read, search and write it, its weights in one file beside it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ammd.errors import ExportError

from .external_weights import hold, read_pieces, state_place

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

GRAPH = "model.onnx"
WEIGHTS = "model.onnx.data"
# Constants of fewer stay in the graph: onnx's own limit of 1 KiB, in which it counts the head of a Python object.
SMALLEST_OUTSIDE_BYTES = 991
Contents = Mapping[str, Callable[[], Iterable[bytes | memoryview]]]


def save_graph(model: ModelProto, folder: Path, contents: Contents | None = None) -> None:
    """Write the graph, and its weights one after another under a name relative to it, a piece in memory at a time.

    Args:
        model: Its tensors are changed to say where they are then. Weights outside of it that `contents` does not
            give are looked for in the current folder.
        folder: It is created.
        contents: By name, what gives the bytes of a tensor that are nowhere yet.
    """
    import onnx

    folder.mkdir(parents=True, exist_ok=True)
    contents = contents or {}
    with (folder / WEIGHTS).open("wb") as target:
        for tensor in model.graph.initializer:
            pieces = contents[tensor.name]() if tensor.name in contents else read_pieces(tensor)
            if _bytes(tensor) < SMALLEST_OUTSIDE_BYTES:
                hold(tensor, b"".join(pieces))
                continue
            offset = target.tell()
            target.writelines(pieces)
            state_place(tensor, file=WEIGHTS, offset=offset, length=target.tell() - offset)
    onnx.save(model, folder / GRAPH)


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
    lookups = [node for node in graph.node if node.op_type == "Gather" and node.input[1] == "input_ids"]
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
