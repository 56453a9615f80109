from __future__ import annotations

import itertools

import pytest

from ammd.runtime.stop_strings import StopStrings


def read(pieces: list[str], stops: list[str]) -> tuple[list[str], bool]:
    """Return what is shown at each piece, the rest last, and whether a stop string ended the text."""
    found = StopStrings(stops)
    shown = []
    for piece in pieces:
        text, stopped = found.pass_on(piece)
        shown.append(text)
        if stopped:
            return shown, True
    return [*shown, found.rest()], False


def test_stop_string_over_several_pieces_is_never_shown() -> None:
    assert read(["one", "\nUs", "er", ": two"], ["\nUser:"]) == (["one", "", "", ""], True)


def test_text_that_only_begins_like_a_stop_string_is_shown_late_but_whole() -> None:
    assert read(["a\nU", "s", "!b"], ["\nUser:"]) == (["a", "", "\nUs!b", ""], False)
    assert read(["a\nU"], ["\nUser:"]) == (["a", "\nU"], False)


def test_beginning_inside_a_beginning_is_not_lost() -> None:
    assert read(["aa", "ab"], ["aab"]) == (["", "a"], True)


@pytest.mark.parametrize(
    ("stops", "shown"), [(["bc", "abcd"], "xa"), (["bc", "abc"], "x"), (["cd", "x"], ""), (["no"], "xabcde")]
)
def test_outcome_does_not_depend_on_how_the_text_is_divided(stops: list[str], shown: str) -> None:
    text = "xabcde"
    for size in range(len(text)):
        for borders in itertools.combinations(range(1, len(text)), size):
            edges = [0, *borders, len(text)]
            pieces = [text[start:stop] for start, stop in itertools.pairwise(edges)]
            assert "".join(read(pieces, stops)[0]) == shown


def test_without_stop_strings_nothing_is_held_back() -> None:
    assert read(["a", "b"], []) == (["a", "b", ""], False)
