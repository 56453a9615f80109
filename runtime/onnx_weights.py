"""What one decoded token reads of an ONNX graph: its weights, and the shape of its keys and values."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ammd.errors import ArtifactError

from .onnx_folder import NEXT, OnnxFolder, has_encoder, read_json, read_onnx_folder

_CACHE, _SOURCE = "past_key_values.", ".encoder."
# Operator -> inputs of which it reads one row: tables of embeddings, and of rotations by position.
_BY_ROW: Mapping[str, Sequence[int]] = {
    "Gather": (0,),
    "GatherBlockQuantized": (0, 2, 3),
    "GroupQueryAttention": (7, 8),
    "RotaryEmbedding": (2, 3),
}
_VIEWS = ("Reshape", "Identity", "Squeeze", "Unsqueeze")


def read_onnx_weights(folder: Path) -> dict[str, int | None]:
    """Return the fields of an `Architecture`.

    Raises:
        ArtifactError: The folder or its graph cannot be read.
    """
    import onnx
    from google.protobuf.message import DecodeError

    described = read_onnx_folder(folder)
    path = folder / NEXT if has_encoder(folder) else described.graph
    try:
        graph = onnx.load(path, load_external_data=False).graph
    except (OSError, DecodeError) as exc:
        raise ArtifactError(f"`{path}` cannot be read as ONNX: {exc}", path=str(path)) from exc
    users: dict[str, list[tuple[Any, int]]] = {}
    for node in graph.node:
        for place, name in enumerate(node.input):
            users.setdefault(name, []).append((node, place))
    weights = 0
    for tensor in graph.initializer:
        by_row = all(place in _BY_ROW.get(node.op_type, ()) for node, place in _readers(tensor.name, users))
        rows = tensor.dims[0] if by_row and len(tensor.dims) > 1 else 1
        weights += _bytes(tensor) // max(rows, 1)
    return {
        "weight_bytes_per_token": weights,
        "kv_values_per_token": _kv_values(graph, described),
        "window_tokens": _window(folder),
    }


def _readers(name: str, users: Mapping[str, Sequence[tuple[Any, int]]]) -> Iterator[tuple[Any, int]]:
    """Yield the nodes that compute with a tensor, and as which input; a view of it is the tensor itself."""
    for node, place in users.get(name, ()):
        if node.op_type in _VIEWS and place == 0:
            yield from _readers(node.output[0], users)
        else:
            yield node, place


def _bytes(tensor: Any) -> int:
    from onnx import TensorProto, helper

    weights: int = math.prod(tensor.dims)
    if tensor.data_type in (TensorProto.INT4, TensorProto.UINT4):
        return -(-weights // 2)
    return weights * int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def _kv_values(graph: Any, described: OnnxFolder) -> int | None:
    """Return the numbers of all caches; what the graph leaves open is the configuration's.

    An encoder-decoder has one of the source beside that of the target; a token of either text adds as much.
    """
    total = 0
    for entry in graph.input:
        if entry.name.startswith(_CACHE) and _SOURCE not in entry.name:
            sizes = [dimension.dim_value for dimension in entry.type.tensor_type.shape.dim]
            heads, width = sizes[1] or described.kv_heads, sizes[3] or described.head_size
            if not heads or not width:
                return None
            total += heads * width
    return total or None


def _window(folder: Path) -> int | None:
    """Return the window of a cache or of some layers."""
    window: int | None = None
    if (folder / "genai_config.json").is_file():
        decoder = read_json(folder / "genai_config.json")["model"]["decoder"]
        window = (decoder.get("sliding_window") or {}).get("window_size")
    elif (config := read_json(folder / "config.json")).get("use_sliding_window", True):
        window = config.get("sliding_window")
    return window
