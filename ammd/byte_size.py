"""A size as people write it, `90 MB` or `85 MiB`."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

_UNITS = {"mb": 10**6, "mib": 2**20, "gb": 10**9, "gib": 2**30}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(mb|mib|gb|gib)", re.IGNORECASE | re.ASCII)


def parse_size(text: str) -> int:
    """Return a size in bytes.

    Raises:
        ValueError: It is no number with a unit.
    """
    found = _SIZE.fullmatch(text.strip())
    if not found:
        raise ValueError("should be a number with MB, MiB, GB or GiB, as `90 MB`")
    return int(float(found[1]) * _UNITS[found[2].lower()])


def _check(text: str) -> str:
    parse_size(text)
    return text


SizeText = Annotated[str, AfterValidator(_check)]
"""A setting that `parse_size` reads."""
