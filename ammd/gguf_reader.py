"""gguf's reader, which takes two seconds for a vocabulary of 49,152 tokens, without the two seconds.

It reads each element of an array by itself, with some ten calls of numpy for each. Here arrays of texts are walked by
its lengths, and arrays of numbers taken at once; fields and tensors are the same. Whatever a damaged file does to
gguf's own code ends as one error, and a list that no real file has is refused before it fills the memory.
"""

from __future__ import annotations

import functools
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ArtifactError

if TYPE_CHECKING:
    from gguf import GGUFReader

GGUF_DAMAGES = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RuntimeWarning,
    RecursionError,  # lists of lists
    MemoryError,
)
"""What gguf's reader, and the `contents` of its fields, raise of a damaged file."""
_MOST_ITEMS = 1 << 22  # of a list; the largest vocabularies and their merges are below a million
_LENGTH = struct.Struct("<Q")
_ARRAY_HEADER_BYTES = 12  # type of the elements, and their number


def open_gguf(path: Path, *, lists: bool = True) -> GGUFReader:
    """Open a GGUF; tensors are mapped, not read.

    Args:
        path: The file.
        lists: Read fields that are lists, the vocabulary among them; without, they are there and empty, which takes a
            third of the time.

    Raises:
        ArtifactError: There is no such file, or it is damaged.
    """
    import warnings

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # numpy's of sizes that overflow
            reader: GGUFReader = _reader_class(lists)(path)
    except GGUF_DAMAGES as exc:
        raise ArtifactError(
            f"`{path}` is damaged or no GGUF: {exc or type(exc).__name__}",
            hint="fetch or export it again",
            path=str(path),
        ) from exc
    return reader


@functools.cache
def _reader_class(lists: bool) -> Any:
    import numpy as np
    from gguf import GGUFReader, GGUFValueType

    class Reader(GGUFReader):  # type: ignore[misc]  # gguf has no types
        def _get_field_parts(self, orig_offs: int, raw_type: int) -> Any:
            if raw_type != GGUFValueType.ARRAY or self.byte_order != "I":
                return super()._get_field_parts(orig_offs, raw_type)
            kind_part, count_part = self._get(orig_offs, np.uint32), self._get(orig_offs + 4, np.uint64)
            kind, count = GGUFValueType(int(kind_part[0])), int(count_part[0])
            if count > _MOST_ITEMS:
                raise ValueError(f"a list claims {count} items")
            raw, first = np.asarray(self.data), orig_offs + _ARRAY_HEADER_BYTES
            if kind is GGUFValueType.STRING:
                spans = _spans(raw, first, count)
                size = (spans[-1][1] if spans else first) - first
                parts = _texts(raw, spans) if lists else []
                places = list(range(3, 3 + len(parts), 2))
            elif kind in self.gguf_scalar_to_np:
                dtype = np.dtype(self.gguf_scalar_to_np[kind])
                size = count * dtype.itemsize
                parts = _numbers(raw, first, size, dtype) if lists else []
                places = list(range(2, 2 + len(parts)))
            else:
                return super()._get_field_parts(orig_offs, raw_type)
            types = [GGUFValueType.ARRAY, *([kind] if count else [])]
            return _ARRAY_HEADER_BYTES + size, [kind_part, count_part, *parts], places, types

    return Reader


def _spans(raw: Any, first: int, count: int) -> list[tuple[int, int]]:
    """Return where each of the texts from `first` on begins and ends."""
    spans, place, end = [], first, len(raw)
    for _ in range(count):
        start = place + _LENGTH.size
        if start > end:
            raise ValueError("a list of texts goes beyond the end of the file")
        (length,) = _LENGTH.unpack_from(raw, place)
        place = start + length
        if place > end:
            raise ValueError(f"a text of {length} bytes goes beyond the end of the file")
        spans.append((start, place))
    return spans


def _texts(raw: Any, spans: list[tuple[int, int]]) -> list[Any]:
    """Return length and bytes of each text, one after the other."""
    import numpy as np

    lengths = np.array([stop - start for start, stop in spans], np.uint64)
    parts = []
    for number, (start, stop) in enumerate(spans):
        parts += [lengths[number : number + 1], raw[start:stop]]
    return parts


def _numbers(raw: Any, first: int, size: int, dtype: Any) -> list[Any]:
    """Return each number in the `size` bytes from `first` on."""
    if first + size > len(raw):
        raise ValueError(f"a list of {size} bytes of numbers goes beyond the end of the file")
    values = raw[first : first + size].view(dtype)
    return [values[number : number + 1] for number in range(len(values))]
