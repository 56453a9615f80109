"""What a GGUF really holds: bits per weight, and the tensors that are not of the type that was asked for.

llama.cpp stores a matrix in another type than asked when its rows do not fit the type's blocks (256 weights
for K types), and says so only in its log. A 576-wide model asked for Q4_K thus becomes mostly Q5_0. The file
itself is read here, so that the report shows what was written, not what was meant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ammd.errors import ArtifactError, ExportError
from ammd.gguf_reader import open_gguf


@dataclass(frozen=True, slots=True, kw_only=True)
class Fallback:
    """A matrix that is stored in another type than was meant for it."""

    tensor: str
    asked: str  # GGUF type name
    stored: str  # GGUF type name
    row_weights: int  # length of a row; not a multiple of the asked type's block


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufContents:
    """The stored weights of a GGUF."""

    weights: int
    weight_bytes: int
    fallbacks: tuple[Fallback, ...]

    @property
    def bits_per_weight(self) -> float:
        """Mean over all tensors, vectors included."""
        return 8 * self.weight_bytes / self.weights


def read_contents(path: Path, *, meant: Mapping[str, str], head: str | None = None) -> GgufContents:
    """Read sizes and types of all tensors in a GGUF.

    Args:
        path: The file.
        meant: The type that the quantizer says it meant, by tensor, where it had to store another.
        head: The type that is meant for the output matrix, or a tied embedding; for rows that it cannot hold the
            quantizer takes Q8_0 without saying so.

    Raises:
        ExportError: The file is not a GGUF or holds no tensors.
    """
    tensors = _tensors(path)
    asked = dict(meant)
    names = {str(tensor.name) for tensor in tensors}
    for tensor in tensors:
        is_head = str(tensor.name) == ("output.weight" if "output.weight" in names else "token_embd.weight")
        if head not in (None, "Q8_0") and is_head and tensor.tensor_type.name == "Q8_0":
            asked.setdefault(str(tensor.name), str(head))
    return GgufContents(
        weights=sum(int(tensor.n_elements) for tensor in tensors),
        weight_bytes=sum(int(tensor.n_bytes) for tensor in tensors),
        fallbacks=tuple(
            Fallback(
                tensor=str(tensor.name),
                asked=asked[str(tensor.name)],
                stored=tensor.tensor_type.name,
                row_weights=int(tensor.shape[0]),
            )
            for tensor in tensors
            if str(tensor.name) in asked
        ),
    )


def read_matrices(path: Path) -> list[Any]:
    """Return gguf's `ReaderTensor` of every tensor with more than one dimension, data mapped, not read.

    Raises:
        ExportError: The file is not a GGUF or holds no tensors.
    """
    return [tensor for tensor in _tensors(path) if len(tensor.shape) > 1]


def _tensors(path: Path) -> list[Any]:

    try:
        tensors = list(open_gguf(path, lists=False).tensors)
    except ArtifactError as exc:
        raise ExportError(f"`{path}` cannot be read as GGUF: {exc}", path=str(path)) from exc
    if not tensors:
        raise ExportError(f"`{path}` holds no tensors", path=str(path))
    return tensors
