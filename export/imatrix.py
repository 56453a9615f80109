"""The importance matrix: for each matrix of a model, how large its inputs are, column by column.

A quantizer that knows which columns are multiplied by large numbers rounds those with more care. Files have the form
of llama.cpp's own (tools/imatrix): a GGUF of type `imatrix` with `NAME.in_sum2`, the sums of squared inputs, and
`NAME.counts`, over how many tokens. NAME is the tensor's in the model's GGUF.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ammd.errors import ArtifactError, ExportError
from ammd.gguf_reader import GGUF_DAMAGES, open_gguf

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

_TYPE = "imatrix"
_SUMS, _COUNTS = ".in_sum2", ".counts"


@dataclass(frozen=True, slots=True, kw_only=True)
class Imatrix:
    """Squared inputs by tensor."""

    sums: Mapping[str, Floats]  # [columns] of each tensor, or of each of its experts in turn
    tokens: Mapping[str, Floats]  # how many were summed up, for each expert; one number for a plain matrix
    datasets: tuple[str, ...]  # what the texts are called
    chunk_tokens: int  # how many tokens llama.cpp's tools count as one chunk
    chunks: int

    def means(self) -> dict[str, Floats]:
        """Return the mean squared input of each column, as the quantizer takes it."""
        return {name: self._mean(name) for name in self.sums}

    def _mean(self, name: str) -> Floats:
        import numpy as np

        tokens = self.tokens[name].reshape(-1, 1)
        sums = self.sums[name].reshape(len(tokens), -1)
        # An expert that no token came to says nothing about its columns: they count alike.
        means: Floats = np.where(tokens > 0, sums / np.maximum(tokens, 1), 1).astype(np.float32).reshape(-1)
        return means


def write_imatrix(path: Path, imatrix: Imatrix) -> None:
    """Write a file that llama.cpp's tools read; the same matrix gives the same bytes."""
    from gguf import GGUFWriter

    writer = GGUFWriter(path, arch="")
    writer.kv_data[0].clear()  # such a file has no architecture
    writer.add_type(_TYPE)
    writer.add_array("imatrix.datasets", list(imatrix.datasets))
    writer.add_uint32("imatrix.chunk_count", imatrix.chunks)
    writer.add_uint32("imatrix.chunk_size", imatrix.chunk_tokens)
    for name in sorted(imatrix.sums):
        tokens = imatrix.tokens[name].reshape(-1, 1)
        writer.add_tensor(name + _SUMS, imatrix.sums[name].reshape(len(tokens), -1))
        writer.add_tensor(name + _COUNTS, tokens)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_imatrix(path: Path) -> Imatrix:
    """Read such a file, whoever wrote it.

    Raises:
        ExportError: It is none.
    """
    try:
        reader = open_gguf(path)
        values = {name: field.contents() for name, field in reader.fields.items()}
        tensors = {str(tensor.name): tensor.data for tensor in reader.tensors}
        if values.get("general.type") != _TYPE:
            raise ValueError(f"its type is {values.get('general.type')!r}")
        names = [name.removesuffix(_SUMS) for name in tensors if name.endswith(_SUMS)]
        return Imatrix(
            sums={name: tensors[name + _SUMS].reshape(-1).copy() for name in names},
            tokens={name: tensors[name + _COUNTS].reshape(-1).copy() for name in names},
            datasets=tuple(values["imatrix.datasets"]),
            chunk_tokens=int(values["imatrix.chunk_size"]),
            chunks=int(values["imatrix.chunk_count"]),
        )
    except (ArtifactError, *GGUF_DAMAGES) as exc:
        raise ExportError(f"`{path}` is not an importance matrix: {exc}", path=str(path)) from exc
