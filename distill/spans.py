"""Where two spellings of one text have said the same: there both next-token distributions are about the same thing."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile


def common_states(
    one: Sequence[bytes | None], other: Sequence[bytes | None], *, from_start: bool = True
) -> list[tuple[int, int]]:
    """Return the places in two token sequences before which both have said the same bytes, in order.

    Nothing behind a token that is no text is common, since it is part of what the model has read.

    Args:
        one: Bytes of each token; None for one that is no text, as the end token.
        other: Likewise.
        from_start: Whether the place before any token counts.

    Returns:
        Pairs of places (i, j): tokens before i in `one` spell what tokens before j in `other` spell. i and j are
        places of tokens, so each pair has two tokens that come next.
    """
    ours, theirs = _starts(one), _starts(other)
    same = _shared_bytes(one, other)
    return [
        (place, theirs[offset])
        for offset, place in ours.items()
        if offset in theirs and offset <= same and (offset > 0 or from_start)
    ]


def _starts(tokens: Sequence[bytes | None]) -> dict[int, int]:
    """Return the place of the first token that begins behind so many bytes, up to one that is no text."""
    found: dict[int, int] = {}
    offset = 0
    for place, token in enumerate(tokens):
        found.setdefault(offset, place)
        if token is None:
            break
        offset += len(token)
    return found


def _shared_bytes(one: Sequence[bytes | None], other: Sequence[bytes | None]) -> int:
    """Return how many bytes both texts begin with alike."""
    ours, theirs = (_joined(tokens) for tokens in (one, other))
    if ours == theirs:
        return len(ours)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ours, theirs, strict=False)))


def _joined(tokens: Sequence[bytes | None]) -> bytes:
    return b"".join(takewhile(lambda token: token is not None, tokens))  # type: ignore[arg-type]
