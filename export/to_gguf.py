"""Checkpoint to F16, BF16 or F32 GGUF with llama.cpp's own converter.

The converter knows every architecture's tensor names, permutations and tokenizer keys, and it is what users
compare with; writing a second one would only add a second opinion. Vectors stay F32.
The same checkpoint gives the same bytes: the child's hash seed is fixed (`captured`), and what is written into the
file of its name and origin is given by the caller.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from ammd.encoder_decoder import stated_head_scale
from ammd.errors import ExportError
from ammd.llama_source import source_tree
from ammd.machine import available_cores

from .captured import run_module
from .checkpoint_facts import read_json
from .converter_view import converter_view
from .gguf_contents import read_matrices
from .gguf_converter import adds_bos
from .mapped_files import released_mappings
from .misread import check_gguf
from .swallowed_space import name_in_file

_PIECE_WEIGHTS = 1 << 17

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def write_gguf(
    checkpoint: Path,
    target: Path,
    *,
    name: str,
    type_name: str = "f16",
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Convert a checkpoint folder to a GGUF.

    Args:
        checkpoint: A folder that transformers can load.
        target: The file to write.
        name: The model's name inside the file.
        type_name: Of the matrices: `f16`, `bf16` or `f32`.
        metadata: What the file says of itself beside its name.

    Raises:
        FetchError: llama.cpp's source cannot be had.
        ExportError: The converter does not know the architecture or tokenizer, or a weight does not fit F16.
    """
    config = read_json(checkpoint / "config.json")
    check_gguf(checkpoint, config)
    tokenizer = read_json(checkpoint / "tokenizer.json")  # some megabytes, so once
    name = name_in_file(name, tokenizer)
    tree = source_tree(suffix=".py")
    options = ["--outtype", type_name, "--outfile", str(target), "--model-name", name]
    request = {
        "metadata": dict(metadata or {}),
        "adds_bos": adds_bos(tokenizer, read_json(checkpoint / "tokenizer_config.json")),
        "head_scale": stated_head_scale(config),
    }
    with converter_view(checkpoint, tokenizer) as view:
        run_module(
            "ammd.export.gguf_converter",
            [str(tree), json.dumps(request), str(view), *options],
            task=f"convert `{checkpoint}` to GGUF",
        )
    _check_finite(target)


def _check_finite(path: Path) -> None:
    """Refuse weights beyond 65504: bfloat16 holds them, F16 turns them into infinity without a word."""
    tensors = [tensor for tensor in read_matrices(path) if tensor.data.dtype.kind == "f"]
    with released_mappings(), ThreadPoolExecutor(available_cores()) as pool:
        for tensor, is_finite in zip(
            tensors, pool.map(lambda one: _is_finite(one.data), tensors), strict=True
        ):
            if not is_finite:
                raise ExportError(
                    f"tensor `{tensor.name}` holds a weight that F16 cannot (beyond 65504, or not a number)",
                    hint="such weights mean that training diverged; export an earlier checkpoint",
                    tensor=str(tensor.name),
                )


def _is_finite(weights: NDArray[np.floating]) -> bool:
    """Tell whether all are finite, by their bits: numpy's own test takes three times as long on float16.

    In pieces that stay in a core's cache, which takes a third of the time of all at once.
    """
    exponent = {2: 0x7C00, 4: 0x7F800000}[weights.itemsize]  # all ones: infinite or not a number
    bits = weights.view(f"u{weights.itemsize}").reshape(-1)
    pieces = (bits[first : first + _PIECE_WEIGHTS] for first in range(0, bits.size, _PIECE_WEIGHTS))
    return not any(bool(((piece & exponent) == exponent).any()) for piece in pieces)
