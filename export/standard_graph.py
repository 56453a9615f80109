"""An ONNX graph in memory: read, search and write it, its weights in one file beside it."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

GRAPH = "model.onnx"
WEIGHTS = "model.onnx.data"
_SMALLEST_OUTSIDE_BYTES = 1024  # constants of a few numbers stay in the graph


def load_graph(path: Path) -> ModelProto:
    """Read a model with all of its weights."""
    import onnx

    return onnx.load(path)


def save_graph(model: ModelProto, folder: Path) -> None:
    """Write the graph, and its weights under a name relative to it."""
    import onnx

    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(
        model,
        folder / GRAPH,
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=WEIGHTS,
        size_threshold=_SMALLEST_OUTSIDE_BYTES,
    )
    # onnx makes it readable for its owner alone.
    (folder / WEIGHTS).chmod(stat.S_IMODE((folder / GRAPH).stat().st_mode))


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
    """Return the node that takes the embeddings of the input's tokens."""
    stored = initializers(graph)
    lookups = [node for node in graph.node if node.op_type == "Gather" and node.input[1] == "input_ids"]
    found: NodeProto = next(node for node in lookups if node.input[0] in stored)
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
