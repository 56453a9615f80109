"""The weights that lie beside an ONNX graph, one after another in a file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx import GraphProto, TensorProto

_PIECE_WEIGHTS = 1 << 20
_PIECE_BYTES = 1 << 22


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


def is_outside(tensor: TensorProto) -> bool:
    """Tell whether a tensor's content lies in a file."""
    from onnx import TensorProto

    return bool(tensor.data_location == TensorProto.EXTERNAL)


def read_array(tensor: TensorProto, folder: str = "") -> NDArray[Any]:
    """Return a tensor's numbers; what lies in a file, which is looked for in `folder`, is mapped instead of read."""
    import numpy as np
    from onnx import helper, numpy_helper

    if not is_outside(tensor):
        return numpy_helper.to_array(tensor)
    place = _place(tensor)
    return np.memmap(
        Path(folder) / place["location"],
        dtype=helper.tensor_dtype_to_np_dtype(tensor.data_type),
        mode="r",
        offset=int(place.get("offset", 0)),
        shape=tuple(tensor.dims),
    )


def read_pieces(tensor: TensorProto) -> Iterator[bytes]:
    """Give a tensor's bytes, a few at a time where they lie in a file; it is looked for in the current folder."""
    if not is_outside(tensor):
        yield tensor.raw_data
        return
    place = _place(tensor)
    left = int(place["length"])
    with Path(place["location"]).open("rb") as source:
        source.seek(int(place["offset"]))
        while left:
            piece = source.read(min(left, _PIECE_BYTES))
            left -= len(piece)
            yield piece


def rows_in_pieces(matrix: Any) -> Iterator[Any]:
    """Give the rows of a matrix, of numpy or torch, about a million weights at a time."""
    step = max(1, _PIECE_WEIGHTS // matrix.shape[1])
    for first in range(0, len(matrix), step):
        yield matrix[first : first + step]


def state_place(tensor: TensorProto, *, file: str, offset: int, length: int) -> None:
    """Let a tensor say that its content lies in a file, and hold none itself."""
    from onnx import TensorProto

    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in {"location": file, "offset": offset, "length": length}.items():
        tensor.external_data.add(key=key, value=str(value))


def hold(tensor: TensorProto, content: bytes) -> None:
    """Let a tensor hold its content itself."""
    tensor.ClearField("data_location")
    del tensor.external_data[:]
    tensor.raw_data = content


def move_out(tensors: Iterable[TensorProto], path: Path) -> None:
    """Write the tensors' content to the end of `path`, and let them say so."""
    with path.open("ab") as target:
        for tensor in tensors:
            offset = target.tell()
            length = target.write(tensor.raw_data)
            state_place(tensor, file=path.name, offset=offset, length=length)


def _place(tensor: TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}
