from __future__ import annotations

import pytest

from ammd.runtime.quality import each_rouge_l, ends_in_loop, repetition, rouge_l


def test_rouge_l_counts_the_longest_common_subsequence() -> None:
    # three of four words in order on both sides: precision = recall = 3/4
    assert rouge_l(["the cat sat down"], ["the cat sat up"]) == pytest.approx(0.75)


def test_rouge_l_stems_and_averages() -> None:
    assert each_rouge_l(["running dogs", "x"], ["run dog", "y"]) == [1, 0]
    assert rouge_l(["running dogs", "x"], ["run dog", "y"]) == pytest.approx(0.5)


def test_repetition_is_the_share_of_seen_sequences() -> None:
    assert repetition("a b c d e f g") == 0
    # 5 sequences of 4 words in "a b a b a b a b": two distinct
    assert repetition("a b a b a b a b") == pytest.approx(3 / 5)
    assert repetition("too short") == 0


@pytest.mark.parametrize(
    ("answer", "loops"),
    [
        ("so it is the best of the best of the best of", True),
        ("no no no no no no", True),
        ("ha ha ha", False),
        ("one two three four five six seven", False),
        ("a b c a b c a b c and then it ends well", False),
        ("", False),
    ],
)
def test_loop_is_a_unit_three_times_at_the_end(answer: str, loops: bool) -> None:
    assert ends_in_loop(answer) is loops
