"""F16 GGUF to a smaller type with llama.cpp's own quantizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from ammd.machine import available_cores

from .captured import run_module
from .gguf_quantizer import FALLBACKS_SUFFIX


def quantize_gguf(
    source: Path,
    target: Path,
    *,
    type_name: str,
    imatrix: Path | None = None,
    overrides: Mapping[str, str] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> Mapping[str, str]:
    """Quantize the matrices of a GGUF.

    Args:
        source: An F16 GGUF.
        target: The file to write.
        type_name: llama.cpp's name of the mix, such as `Q8_0` or `Q4_K_M`.
        imatrix: An importance matrix to go by.
        overrides: Other types, by a regular expression of the tensor's name; the first that is found counts.
        metadata: What the file says of itself beside, or instead of, what `source` does.

    Returns:
        By tensor, the type that the quantizer meant where it had to store another.

    Raises:
        ExportError: llama.cpp refuses; the error quotes its reason.
    """
    request = {
        "source": str(source),
        "target": str(target),
        "file_type": type_name,
        "imatrix": str(imatrix) if imatrix else None,
        "overrides": dict(overrides or {}),
        "metadata": dict(metadata or {}),
        "threads": available_cores(),
    }
    found = Path(f"{target}{FALLBACKS_SUFFIX}")
    try:
        run_module(
            "ammd.export.gguf_quantizer",
            [json.dumps(request)],
            task=f"quantize `{source.name}` to {type_name}",
        )
        meant: dict[str, str] = json.loads(found.read_text(encoding="utf-8"))
    finally:
        found.unlink(missing_ok=True)
    return meant
