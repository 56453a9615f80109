"""The child process that quantizes: `python -m ammd.export.gguf_quantizer SOURCE TARGET TYPE THREADS`."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    """Quantize the GGUF `SOURCE` to `TARGET` with llama.cpp and return its status; 0 is success."""
    import llama_cpp

    source, target, type_name, threads = arguments
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{type_name}")
    params.nthread = int(threads)
    return int(llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
