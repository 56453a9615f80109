"""The weights that lie beside an ONNX graph, one after another in a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnx import GraphProto, TensorProto


def rewrite_weights(
    graph: GraphProto, path: Path, change: Callable[[TensorProto, bytes], bytes] | None = None
) -> None:
    """Write what the graph still names into the file anew, one tensor in memory at a time.

    Args:
        graph: Its initializers' places are changed to the new ones.
        path: The file; it stays as it was if `change` raises.
        change: Gives the bytes to store for a tensor and its bytes; absent keeps them.
    """
    part = path.with_suffix(".part")
    try:
        with path.open("rb") as source, part.open("wb") as target:
            for tensor in graph.initializer:
                places: dict[str, Any] = {entry.key: entry for entry in tensor.external_data}
                if not places:
                    continue
                source.seek(int(places["offset"].value))
                data = source.read(int(places["length"].value))
                if change is not None:
                    data = change(tensor, data)
                places["offset"].value, places["length"].value = str(target.tell()), str(len(data))
                target.write(data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
