"""Numbers for the quality of answers, from text alone. Each definition stands beside its function.

Words, not tokens, so that a number means the same for every tokenizer; one number a set of answers.
"""

from __future__ import annotations

from collections.abc import Sequence

_NGRAM_WORDS = 4
_LONGEST_LOOP_WORDS = 16
_LOOP_REPEATS = 3
_SHORTEST_LOOP_WORDS = 6  # in all repeats together: "ha ha ha" alone is no loop


def rouge_l(answers: Sequence[str], targets: Sequence[str]) -> float:
    """Return the mean ROUGE-L F-measure of answers against targets, from 0 to 1.

    Longest common subsequence of words, stemmed, as Google's `rouge-score` computes it (lower case, letters
    and digits only). Both sequences have the same length, at least one.
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    scores = [
        scorer.score(target, answer)["rougeL"].fmeasure
        for answer, target in zip(answers, targets, strict=True)
    ]
    return float(sum(scores) / len(scores))


def repetition(answers: Sequence[str]) -> float:
    """Return the share of 4-word sequences that stood in the same answer before, mean over answers.

    0 where nothing is said twice; answers of fewer than four words count as 0.
    """
    return sum(map(_repeated_share, answers)) / len(answers)


def looping_share(answers: Sequence[str]) -> float:
    """Return the share of answers whose end is a loop.

    A loop: the last words are one unit of at most 16 words, three times in succession, six words or more.
    """
    return sum(map(ends_in_loop, answers)) / len(answers)


def ends_in_loop(answer: str) -> bool:
    """Tell whether the last words are one short unit three times in succession."""
    words = answer.lower().split()
    for unit in range(1, _LONGEST_LOOP_WORDS + 1):
        repeats = max(_LOOP_REPEATS, -(-_SHORTEST_LOOP_WORDS // unit))
        tail = words[-unit * repeats :]
        if len(tail) == unit * repeats and tail == tail[:unit] * repeats:
            return True
    return False


def _repeated_share(answer: str) -> float:
    words = answer.lower().split()
    sequences = [tuple(words[i : i + _NGRAM_WORDS]) for i in range(len(words) - _NGRAM_WORDS + 1)]
    return 1 - len(set(sequences)) / len(sequences) if sequences else 0.0
