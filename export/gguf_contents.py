"""What a GGUF really holds: bits per weight, and the tensors that are not of the type that was asked for.

llama.cpp stores a matrix in another type than asked when its rows do not fit the type's blocks (256 weights
for K types), and says so only in its log. A 576-wide model asked for Q4_K thus becomes mostly Q5_0. The file
itself is read here, so that the report shows what was written, not what was meant.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ammd.errors import ExportError

# The type that stands in -> the type whose blocks did not fit (llama-quant.cpp, tensor_type_fallback).
_STANDS_IN_FOR = {"Q5_0": "Q4_K", "Q5_1": "Q5_K", "Q8_0": "Q6_K"}
# Scheme -> types that it means to use for matrices.
_MEANT = {
    "f16": frozenset({"F16"}),
    "q8_0": frozenset({"Q8_0"}),
    "q4_0": frozenset({"Q4_0", "Q6_K"}),
    "q4_k_m": frozenset({"Q4_K", "Q5_K", "Q6_K"}),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fallback:
    """A matrix that is stored in another type than the scheme means."""

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


def read_contents(path: Path, *, scheme: str) -> GgufContents:
    """Read sizes and types of all tensors in a GGUF made for `scheme` (`f16`, `q8_0`, `q4_0` or `q4_k_m`).

    Raises:
        ExportError: The file is not a GGUF or holds no tensors.
    """
    tensors = _tensors(path)
    return GgufContents(
        weights=sum(int(tensor.n_elements) for tensor in tensors),
        weight_bytes=sum(int(tensor.n_bytes) for tensor in tensors),
        fallbacks=tuple(
            fallback
            for tensor in tensors
            if len(tensor.shape) > 1 and (fallback := _fallback(tensor, scheme)) is not None
        ),
    )


def read_matrices(path: Path) -> list[Any]:
    """Return gguf's `ReaderTensor` of every tensor with more than one dimension, data mapped, not read.

    Raises:
        ExportError: The file is not a GGUF or holds no tensors.
    """
    return [tensor for tensor in _tensors(path) if len(tensor.shape) > 1]


def _tensors(path: Path) -> list[Any]:
    from gguf import GGUFReader

    try:
        tensors = list(GGUFReader(path).tensors)
    except (OSError, ValueError, IndexError, KeyError) as exc:
        raise ExportError(f"`{path}` cannot be read as GGUF: {exc}", path=str(path)) from exc
    if not tensors:
        raise ExportError(f"`{path}` holds no tensors", path=str(path))
    return tensors


def _fallback(tensor: Any, scheme: str) -> Fallback | None:
    stored = tensor.tensor_type.name
    meant = _MEANT[scheme]
    if stored in meant:
        return None
    return Fallback(
        tensor=str(tensor.name),
        asked=_STANDS_IN_FOR.get(stored, min(meant)),  # F16 stands in where not even 32 divides the row
        stored=stored,
        row_weights=int(tensor.shape[0]),
    )
