"""Less memory for onnxruntime-genai's builder, which then writes the same files to the byte.

Before it quantizes, the builder writes the whole float32 graph into one message in memory, beside the checkpoint that
it came from, and turns a matrix round as a whole; here the graph goes to a folder, some rows at a time, the checkpoint
is let go of, and one matrix after another is read back, mapped instead of copied. ONNX Runtime's rounding, which keeps
float64 copies of what it rounds, is given a matrix in pieces: its blocks do not meet. And what it has rounded goes to
the folder too, until the builder writes its file.
"""

from __future__ import annotations

import functools
import gc
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from .external_weights import is_outside, move_out, read_array, rows_in_pieces

if TYPE_CHECKING:
    from onnx import TensorProto

# The method that turns the float32 graph into the quantized one, by release of the builder.
_QUANTIZING = ("to_nbits", "to_int4")
_ROUNDING = ("quant_tensor", "quant_tensor_k_quant_cpu", "quant_tensor_k_quant_cuda")


def quantize_from_disk(model_class: Any, scratch: Path) -> None:
    """Let the quantizer find the graph on disk, tensor by tensor."""
    (name,) = [name for name in _QUANTIZING if hasattr(model_class, name)]
    quantize = getattr(model_class, name)

    def from_disk(self: Any) -> Any:
        import onnx_ir

        graph = scratch / "float32.onnx"
        onnx_ir.save(self.model, graph, external_data=f"{graph.name}.data", size_threshold_bytes=0)
        for value in self.model.graph.initializers.values():
            value.const_value = None  # the last that holds the checkpoint's weights
        gc.collect()
        self.model = onnx_ir.load(graph)
        os.chdir(scratch)  # where both libraries look for the tensors of a message that came from no file
        return quantize(self)

    setattr(model_class, name, from_disk)


def write_in_pieces(model_class: Any) -> None:
    """Let matrices that the graph has in float32 be converted some rows at a time when they are written."""
    import onnx_ir
    import torch

    make = model_class.make_initializer

    class Rows(onnx_ir.LazyTensor):
        """A matrix that is a view of the checkpoint's until it is asked for."""

        def __init__(self, whole: Any, source: torch.Tensor) -> None:
            super().__init__(whole.raw, dtype=whole.dtype, shape=whole.shape, name=whole.name)
            self._source = source

        def tofile(self, file: Any) -> None:
            for rows in rows_in_pieces(self._source):
                file.write(rows.detach().float().contiguous().numpy().data)

    @functools.wraps(make)
    def make_initializer(self: Any, tensor: Any, /, name: str, **options: Any) -> None:
        make(self, tensor, name, **options)
        value = self.model.graph.initializers[name]
        whole = value.const_value
        is_lazy = isinstance(whole, onnx_ir.LazyTensor) and whole.dtype == onnx_ir.DataType.FLOAT
        if is_lazy and isinstance(tensor, torch.Tensor) and tensor.ndim == 2:
            value.const_value = Rows(whole, tensor)

    model_class.make_initializer = make_initializer


def round_in_pieces(rounding: Any, scratch: Path) -> None:
    """Let ONNX Runtime's module for `rtn` and `k_quant` do so, and keep what it makes in a file."""
    for name in _ROUNDING:
        if hasattr(rounding, name):
            setattr(rounding, name, _in_pieces(getattr(rounding, name)))
    rounding.numpy_helper = SimpleNamespace(
        **vars(rounding.numpy_helper) | {"to_array": _mapped(rounding.numpy_helper.to_array)}
    )
    rounding.make_matmul_weight_only_node = _kept_in(
        scratch / "rounded.onnx.data", rounding.make_matmul_weight_only_node
    )


def round_columns_in_pieces(quantizer_class: Any, scratch: Path) -> None:
    """Let ONNX Runtime's class for its own rounding do so, and keep what it makes in a file."""
    if not hasattr(quantizer_class, "qbits_block_quant"):
        return  # of a release that is not asked for it
    quantizer_class.qbits_block_quant = _by_columns(quantizer_class.qbits_block_quant)
    quantizer_class.quantize_matmul = _apart(scratch / "rounded.onnx.data", quantizer_class.quantize_matmul)


def _in_pieces(rounds: Callable[..., Any]) -> Callable[..., Any]:
    """Return the same function, which takes a matrix [outputs, inputs] some rows at a time.

    Returns what it returns: quantized weights [blocks, block size], scales and zero points [blocks, 1].
    """

    @functools.wraps(rounds)
    def in_pieces(data: Any, num_bits: int = 4, group_size: int = 32, *options: Any) -> tuple[Any, Any, Any]:
        import numpy as np

        whole = np.empty((data.size // group_size, group_size), np.uint8)
        rest, end = [], 0
        for rows in rows_in_pieces(data):
            quantized, scale, zero_point = rounds(np.array(rows), num_bits, group_size, *options)
            whole[end : end + len(quantized)] = quantized
            end += len(quantized)
            rest.append((scale.astype(data.dtype), zero_point))
        scale, zero_point = (np.concatenate(parts) for parts in zip(*rest, strict=True))
        return whole, scale, zero_point

    return in_pieces


def _by_columns(rounds: Callable[..., Any]) -> Callable[..., Any]:
    """Return the same method, which takes a matrix [inputs, outputs] some columns at a time.

    Returns what it returns: quantized weights, scales and zero points, [outputs, ...].
    """

    @functools.wraps(rounds)
    def by_columns(self: Any, matrix: Any) -> tuple[Any, ...]:
        import numpy as np

        pieces = [rounds(self, np.array(rows.T)) for rows in rows_in_pieces(matrix.T)]
        return tuple(np.concatenate(parts) for parts in zip(*pieces, strict=True))

    return by_columns


def _mapped(reads: Callable[..., Any]) -> Callable[..., Any]:
    """Return the same function, which gives a view of the file that a tensor is in, instead of a copy."""
    import numpy as np

    class Mapped(np.memmap[Any, Any]):
        def copy(self, order: Any = "C") -> Any:  # noqa: ARG002
            return self  # the rounding asks for one that it does not write to

    @functools.wraps(reads)
    def mapped(tensor: TensorProto, base_dir: str = "") -> Any:
        return read_array(tensor, base_dir).view(Mapped) if is_outside(tensor) else reads(tensor, base_dir)

    return mapped


def _kept_in(path: Path, makes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the same function, whose tensors are in `path` instead of in memory."""

    @functools.wraps(makes)
    def kept(*arguments: Any, **options: Any) -> Any:
        node, tensors = makes(*arguments, **options)
        move_out(tensors, path)
        return node, tensors

    return kept


def _apart(path: Path, quantizes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the same method, whose tensors are in `path` instead of in the graph.

    What a graph has held once it holds until its end, so that they are made in one that has nothing but the matrix.
    """

    @functools.wraps(quantizes)
    def apart(self: Any, node: Any, graphs: list[Any]) -> Any:
        from onnx import GraphProto

        (matrix, owner), *_ = [
            (tensor, graph)
            for graph in reversed(graphs)
            for tensor in graph.initializer
            if tensor.name == node.input[1]
        ] or [(None, None)]
        if matrix is None or len(matrix.dims) != 2:
            return quantizes(self, node, graphs)
        alone = GraphProto(initializer=[matrix])
        nodes = quantizes(self, node, [alone])
        made = list(alone.initializer)[1:]
        move_out(made, path)
        owner.initializer.extend(made)
        return nodes

    return apart
