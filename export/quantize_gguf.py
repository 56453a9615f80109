"""F16 GGUF to a smaller type with llama.cpp's own quantizer."""

from __future__ import annotations

from pathlib import Path

from ammd.machine import available_cores

from .captured import run_module


def quantize_gguf(source: Path, target: Path, *, type_name: str) -> None:
    """Quantize the matrices of a GGUF.

    Args:
        source: An F16 GGUF.
        target: The file to write.
        type_name: llama.cpp's name of the mix, such as `Q8_0` or `Q4_K_M`.

    Raises:
        ExportError: llama.cpp refuses; the error quotes its reason.
    """
    run_module(
        "ammd.export.gguf_quantizer",
        [str(source), str(target), type_name, str(available_cores())],
        task=f"quantize `{source.name}` to {type_name}",
    )
