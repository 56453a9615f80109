"""What a checkpoint's safetensors files hold, read without loading a weight.

Each begins with a JSON header that names every tensor with its dtype and shape.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from .errors import ArtifactError

HEAD = "lm_head.weight"
_HEADER_LIMIT_BYTES = 100 << 20  # as the format's own reader has it


def read_headers(folder: Path) -> dict[str, Any]:
    """Return `dtype`, `shape` and `data_offsets` of each tensor in the `*.safetensors` of a folder, by name.

    Raises:
        ArtifactError: A file is damaged.
    """
    tensors: dict[str, Any] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors.update(_read_header(path))
    return tensors


def is_head_tied(config: Mapping[str, Any], tensors: Collection[str]) -> bool:
    """Tell whether a model's output matrix is its embedding matrix.

    A family that ties by default, as Gemma's and SmolLM3's own, leaves the word for it out of its configuration; then
    the weights tell.
    """
    return bool(config.get("tie_word_embeddings", bool(tensors) and HEAD not in tensors))


def _read_header(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > _HEADER_LIMIT_BYTES:
                raise ArtifactError(f"`{path}` is damaged: its header claims {length} bytes", path=str(path))
            header: dict[str, Any] = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        end = 8 + length + max((int(entry["data_offsets"][1]) for entry in header.values()), default=0)
    except (
        OSError,
        struct.error,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        ArithmeticError,
        RecursionError,
    ) as exc:
        raise ArtifactError(f"`{path}` is damaged: no safetensors header", path=str(path)) from exc
    if path.stat().st_size != end:
        raise ArtifactError(
            f"`{path}` is damaged: {path.stat().st_size} bytes, its header says {end}",
            path=str(path),
            expected=end,
            found=path.stat().st_size,
        )
    return header
