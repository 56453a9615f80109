"""zstd as the standard library of Python 3.14 has it, and before that the backport of that module."""

from __future__ import annotations

import sys

if sys.version_info >= (3, 14):
    from compression.zstd import CompressionParameter, ZstdError, ZstdFile
else:
    from backports.zstd import CompressionParameter, ZstdError, ZstdFile

__all__ = ["CompressionParameter", "ZstdError", "ZstdFile"]
