"""Files that a library maps into memory, kept from filling it.

Both the quantizer and transformers map a model's file and read it once from the front to the back. What was read
stays resident, so a process seems to need the whole file although any page of it could go; on a machine whose memory
is limited by a quota it may be killed for that. Here those pages are let go of while the library works. Linux only:
elsewhere nothing is done.

Pages are paged out and never forgotten (`MADV_DONTNEED`): between the look at the table of mappings and the advice a
library may unmap the file and get the same addresses for its heap, and memory that is forgotten reads as zeros. Nor are
they paged out all the time: the system drops what it has read ahead with them, and on a slow disk nothing else would
then be done but to read it again.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Iterator
from pathlib import Path

from ammd.machine import status_bytes

_MAPS = Path("/proc/self/maps")
_INTERVAL_SECONDS = 0.05
_SUFFIXES = (".gguf", ".safetensors", ".onnx.data")
_PAGEOUT = 21  # MADV_PAGEOUT of Linux 5.4, which Python does not name
_GROWTH_BYTES = 32 << 20  # of resident files since the last time


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
    left = 0
    while not ended.wait(_INTERVAL_SECONDS):
        resident = status_bytes("RssFile") or 0
        if resident < left + _GROWTH_BYTES:
            left = min(left, resident)
            continue
        for line in _MAPS.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.endswith(_SUFFIXES):
                start, end = (int(address, 16) for address in line.split(maxsplit=1)[0].split("-"))
                libc.madvise(start, end - start, _PAGEOUT)  # refused or unknown: the pages stay: no harm
        left = status_bytes("RssFile") or 0
