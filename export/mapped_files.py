"""Files that a library maps into memory, kept from filling it.

Both the quantizer and transformers map a model's file and read it once from the front to the back. What was read
stays resident, so a process seems to need the whole file although any page of it could go; on a machine whose memory
is limited by a quota it may be killed for that. Here those pages are let go of while the library works. Linux only:
elsewhere nothing is done.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import threading
from collections.abc import Iterator
from pathlib import Path

_MAPS = Path("/proc/self/maps")
_INTERVAL_SECONDS = 0.05
_SUFFIXES = (".gguf", ".safetensors", ".onnx.data")
_PAGEOUT = 21  # MADV_PAGEOUT of Linux 5.4, which Python does not name


@contextlib.contextmanager
def released_mappings() -> Iterator[None]:
    """Let go of mapped model files' pages, again and again, until the block ends."""
    ended = threading.Event()
    thread = threading.Thread(target=_release_until, args=(ended,), daemon=True)
    if _MAPS.exists():
        thread.start()
    try:
        yield
    finally:
        ended.set()
        if thread.ident is not None:
            thread.join()


def _release_until(ended: threading.Event) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    while not ended.wait(_INTERVAL_SECONDS):
        for line in _MAPS.read_text(encoding="utf-8", errors="replace").splitlines():
            if not line.endswith(_SUFFIXES):
                continue
            span, permissions = line.split(maxsplit=2)[:2]
            start, end = (int(address, 16) for address in span.split("-"))
            # A page that may have been written to must not be forgotten; paging out keeps what is not in the file.
            advice = _PAGEOUT if "w" in permissions else mmap.MADV_DONTNEED
            libc.madvise(start, end - start, advice)  # refused or unknown: the pages stay, which does no harm
