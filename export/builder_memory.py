"""Less memory for onnxruntime-genai's builder, which then writes the same files to the byte.

Before it quantizes, the builder writes the whole float32 graph into one message in memory, beside the checkpoint that
it came from; here the graph goes to a folder, the checkpoint is let go of, and one matrix after another is read back.
ONNX Runtime's rounding, which keeps float64 copies of what it rounds, is given a matrix in pieces: its blocks do not
meet. And what it has rounded goes to the folder too, until the builder writes its file.
"""

from __future__ import annotations

import functools
import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

# The method that turns the float32 graph into the quantized one, by release of the builder.
_QUANTIZING = ("to_nbits", "to_int4")
_ROUNDING = ("quant_tensor", "quant_tensor_k_quant_cpu", "quant_tensor_k_quant_cuda")
_PIECE_WEIGHTS = 1 << 20


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


def round_in_pieces(rounding: Any, scratch: Path) -> None:
    """Let ONNX Runtime's module for rounding do so, and keep what it makes in a file."""
    for name in _ROUNDING:
        if hasattr(rounding, name):
            setattr(rounding, name, _in_pieces(getattr(rounding, name)))
    rounding.make_matmul_weight_only_node = _kept_in(
        scratch / "rounded.onnx.data", rounding.make_matmul_weight_only_node
    )


def _in_pieces(rounds: Callable[..., Any]) -> Callable[..., Any]:
    """Return the same function, which takes a matrix `_PIECE_WEIGHTS` at a time.

    Returns what it returns: quantized weights [blocks, block size], scales and zero points [blocks, 1].
    """

    @functools.wraps(rounds)
    def in_pieces(data: Any, num_bits: int = 4, group_size: int = 32, *options: Any) -> tuple[Any, Any, Any]:
        import numpy as np

        blocks = np.reshape(data, (-1, group_size))
        step = max(1, _PIECE_WEIGHTS // group_size)
        pieces = []
        for first in range(0, len(blocks), step):
            quantized, scale, zero_point = rounds(
                blocks[first : first + step], num_bits, group_size, *options
            )
            pieces.append((quantized.astype(np.uint8), scale.astype(blocks.dtype), zero_point))
        quantized, scale, zero_point = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
        return quantized, scale, zero_point

    return in_pieces


def _kept_in(path: Path, makes: Callable[..., Any]) -> Callable[..., Any]:
    """Return the same function, whose tensors are in `path` instead of in memory."""

    @functools.wraps(makes)
    def kept(*arguments: Any, **options: Any) -> Any:
        from onnx import TensorProto

        node, tensors = makes(*arguments, **options)
        with path.open("ab") as target:
            for tensor in tensors:
                place = {"location": path.name, "offset": target.tell(), "length": len(tensor.raw_data)}
                target.write(tensor.raw_data)
                tensor.ClearField("raw_data")
                tensor.data_location = TensorProto.EXTERNAL
                for key, value in place.items():
                    tensor.external_data.add(key=key, value=str(value))
        return node, tensors

    return kept
