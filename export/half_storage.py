"""Store the matrices of a float32 ONNX model in float16, and let the runtime widen them when it loads the model.

onnxruntime-genai's builder writes float16 for CPUs without grouped-query attention, and its own generation fails on
that. This file is half as large as the float32 one and computes as it does: the casts stand on constants, so
ONNX Runtime does them once. Rotary tables and vectors stay float32.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ammd.errors import ExportError

from .external_weights import rewrite_weights

if TYPE_CHECKING:
    from onnx import GraphProto, TensorProto

_READERS = {"MatMul": 1, "Gather": 0, "Transpose": 0}  # operators that read matrices, and at which input


def halve_storage(graph_path: Path, weights_path: Path) -> None:
    """Rewrite a model of the builder in place, one tensor in memory at a time.

    Raises:
        ExportError: A weight is larger than float16 can hold.
    """
    import onnx

    model = onnx.load(graph_path, load_external_data=False)
    graph = model.graph
    matrices = _matrices(graph)
    rewrite_weights(
        graph, weights_path, lambda tensor, data: _halves(tensor, data) if tensor.name in matrices else data
    )
    casts = []
    for tensor in graph.initializer:
        if tensor.name in matrices:
            wide = tensor.name
            tensor.name, tensor.data_type = f"{wide}/float16", onnx.TensorProto.FLOAT16
            node = onnx.helper.make_node(
                "Cast", [tensor.name], [wide], name=f"{wide}/Cast", to=onnx.TensorProto.FLOAT
            )
            casts.append(node)
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.save(model, graph_path)


def _matrices(graph: GraphProto) -> set[str]:
    import onnx

    stored = {
        tensor.name
        for tensor in graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) == 2
    }
    read = {node.input[_READERS[node.op_type]] for node in graph.node if node.op_type in _READERS}
    return stored & read


def _halves(tensor: TensorProto, data: bytes) -> bytes:
    import numpy as np

    wide = np.frombuffer(data, np.float32)
    if np.abs(wide).max(initial=0.0) > np.finfo(np.float16).max:
        raise ExportError(
            f"tensor `{tensor.name}` holds a weight that F16 cannot (beyond 65504)",
            hint="such weights mean that training diverged; export an earlier checkpoint, or `onnx-fp32`",
            tensor=tensor.name,
        )
    return wide.astype(np.float16).tobytes()
