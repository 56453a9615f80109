"""Common states by offsets against a brute force over all prefixes."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from ammd.distill.spans import common_states

TEXTS = st.text(alphabet="a é\u4f60🙂\n", max_size=12)


@st.composite
def spelling(draw: st.DrawFn, text: bytes) -> list[bytes | None]:
    """Cut a text anywhere, in the middle of characters too, and end it with what is no text, or not."""
    cuts = sorted(draw(st.sets(st.integers(1, max(1, len(text) - 1))))) if len(text) > 1 else []
    pieces: list[bytes | None] = [
        text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)
    ]
    pieces = [piece for piece in pieces if piece]
    return [*pieces, None] if draw(st.booleans()) else pieces


def brute_force(one: Sequence[bytes | None], other: Sequence[bytes | None]) -> list[tuple[int, int]]:
    def said(tokens: Sequence[bytes | None]) -> bytes | None:
        return None if None in tokens else b"".join(token for token in tokens if token is not None)

    return [
        (i, j)
        for i in range(len(one))
        for j in range(len(other))
        if said(one[:i]) is not None and said(one[:i]) == said(other[:j])
    ]


@given(st.data(), TEXTS)
def test_offsets_find_what_prefixes_have_in_common(data: st.DataObject, text: str) -> None:
    one, other = (data.draw(spelling(text.encode())) for _ in range(2))
    assert common_states(one, other) == brute_force(one, other)


@given(st.data(), TEXTS, TEXTS, TEXTS)
def test_nothing_is_common_behind_the_first_difference(
    data: st.DataObject, same: str, first: str, second: str
) -> None:
    """As where a tokenizer writes a character in another form, or leaves a half one out."""
    one, other = (data.draw(spelling((same + rest).encode())) for rest in (first, second))
    assert common_states(one, other) == brute_force(one, other)


def test_the_end_token_is_behind_the_same_text() -> None:
    assert common_states([b"the", b"ory", None], [b"theory", None]) == [(0, 0), (2, 1)]


def test_a_special_token_ends_what_is_common() -> None:
    assert common_states([b"a", None, b"b"], [b"a", b"b"]) == [(0, 0), (1, 1)]


def test_the_start_is_left_out_where_first_words_are_written_differently() -> None:
    assert common_states([b"a", None], [b"a", None], from_start=False) == [(1, 1)]
