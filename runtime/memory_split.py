"""What a process's memory consists of: its own pages, mapped files, and what it shares; all of this process alone.

A mapped file's pages count as resident but can be dropped at any time, so a phone's memory limit hardly sees them;
anonymous pages and swap are what a model really takes. The peak has no split of its own in Linux: the parts are of the
moment in which they are read, beside `rss_bytes`, the resident memory of that moment.
"""

from __future__ import annotations

from pathlib import Path

from ammd.machine import peak_rss_bytes, status_bytes

_STATUS = {
    "rss_bytes": "VmRSS",
    "rss_anon_bytes": "RssAnon",
    "rss_file_bytes": "RssFile",
    "rss_shmem_bytes": "RssShmem",
    "swap_bytes": "VmSwap",
}
MEMORY_FIELDS = ("peak_rss_bytes", *_STATUS, "pss_bytes")


def memory_split() -> dict[str, int | None]:
    """Return the fields `MEMORY_FIELDS`; None where the system does not tell."""
    peak = peak_rss_bytes()
    return {
        "peak_rss_bytes": peak,
        **{name: status_bytes(field) for name, field in _STATUS.items()},
        "pss_bytes": _rollup_bytes("Pss"),
    }


def _rollup_bytes(field: str) -> int | None:
    try:
        lines = Path("/proc/self/smaps_rollup").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    return None
