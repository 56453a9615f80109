"""Numbers for the quality of answers, from text alone. Each definition stands beside its function.

Words, not tokens, so that a number means the same for every tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence

_NGRAM_WORDS = 4
_LONGEST_LOOP_WORDS = 16
_LOOP_REPEATS = 3
_SHORTEST_LOOP_WORDS = 6  # in all repeats together: "ha ha ha" alone is no loop


def rouge_l(answers: Sequence[str], targets: Sequence[str]) -> float:
    """Return the mean ROUGE-L F-measure of answers against targets, from 0 to 1; see `each_rouge_l`."""
    scores = each_rouge_l(answers, targets)
    return sum(scores) / len(scores)


def each_rouge_l(answers: Sequence[str], targets: Sequence[str]) -> list[float]:
    """Return the ROUGE-L F-measure of each answer against its target, from 0 to 1.

    Both sequences have the same length.
    """
    found = each_rouge(answers, [(target,) for target in targets], kinds=("rougeL",))
    return [one["rougeL"] for one in found]


def each_rouge(
    answers: Sequence[str], references: Sequence[Sequence[str]], *, kinds: Sequence[str]
) -> list[dict[str, float]]:
    """Return F-measures of each answer against the best of its references for each kind, from 0 to 1.

    Words are stemmed, in lower case, letters and digits only, as Google's `rouge-score` has them: `rouge1` and `rouge2`
    count n-grams, `rougeL` the longest common subsequence. Both sequences have the same length.
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(kinds), use_stemmer=True)
    return [
        {kind: float(score.fmeasure) for kind, score in scorer.score_multi(list(right), answer).items()}
        for answer, right in zip(answers, references, strict=True)
    ]


def repetition(answer: str) -> float:
    """Return the share of 4-word sequences that stood in the same answer before.

    0 where nothing is said twice, and for an answer of fewer than four words.
    """
    words = answer.lower().split()
    sequences = [tuple(words[i : i + _NGRAM_WORDS]) for i in range(len(words) - _NGRAM_WORDS + 1)]
    return 1 - len(set(sequences)) / len(sequences) if sequences else 0.0


def ends_in_loop(answer: str) -> bool:
    """Tell whether the end is a loop.

    That is: the last words are one unit of at most 16 words, three times in succession, six words or more.
    """
    words = answer.lower().split()
    for unit in range(1, _LONGEST_LOOP_WORDS + 1):
        repeats = max(_LOOP_REPEATS, -(-_SHORTEST_LOOP_WORDS // unit))
        tail = words[-unit * repeats :]
        if len(tail) == unit * repeats and tail == tail[:unit] * repeats:
            return True
    return False
