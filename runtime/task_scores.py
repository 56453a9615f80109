"""What answers to a task are worth: scores of each row, and what they amount to.

A row's scores hold, for each metric, its own value or the counts that it adds to a corpus score. `summarize` needs
nothing else: the number of all rows, and its interval, from corpora of rows that are drawn with replacement. Where
answers are drawn at a temperature, a number is the mean over the sampling seeds of the whole corpus' score, and the
interval is over rows and seeds, which are drawn independently of each other: a row has all its answers in a draw, one
for each seed that is drawn.

ROUGE is rouge-score's, BLEU and chrF are sacrebleu's, whose counts of a row are kept; `signatures` says how each was
computed. Accuracies by likelihood are lm-evaluation-harness's `acc` and `acc_norm`, the latter by bytes.
"""

from __future__ import annotations

import importlib.metadata
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import cache
from typing import TYPE_CHECKING, Any

from ammd.task import Task, TaskKind
from ammd.task_data import TaskRow

from .bootstrap import corpus_draws, middle
from .likelihood import bits, perplexity
from .quality import each_rouge

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

Scores = Mapping[str, Any]
"""Of one row: `row`, its place; `seed` of a drawn answer, else None; then what the metrics need."""

_SEED = 0  # of the draws of rows: the same for all models, so that they can be compared
_NOISE_IN_NUMBERS = re.compile(r"[\s,$€£%]")


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskMetric:
    """One number of a task."""

    key: str
    title: str  # as tables have it
    of: tuple[
        str, ...
    ]  # fields of a row's scores: one with the row's own value, or with its counts, or several numbers
    score: Callable[[Sequence[float]], float]  # of a corpus, from the sums of what the rows add
    percent: bool = False  # shown as such
    higher_is_better: bool = True

    def counts(self, row: Scores) -> list[float] | None:
        """Return what a row adds to the sums; None where it has no part in this number."""
        if any(row.get(name) is None for name in self.of):
            return None
        if len(self.of) > 1:
            return [float(row[name]) for name in self.of]
        own = row[self.of[0]]
        return list(map(float, own)) if isinstance(own, list) else [float(own), 1.0]


def _mean(sums: Sequence[float]) -> float:
    return sums[0] / sums[1]


def _bleu(sums: Sequence[float]) -> float:
    return float(_corpus_scorers()["bleu"]._compute_score_from_stats([int(one) for one in sums]).score)


def _chrf(sums: Sequence[float]) -> float:
    return float(_corpus_scorers()["chrf"]._compute_score_from_stats([int(one) for one in sums]).score)


def _perplexity(sums: Sequence[float]) -> float:
    return perplexity(sums[0], sums[1])


def _bits(sums: Sequence[float]) -> float:
    return bits(sums[0], sums[1])


def _share(key: str, title: str) -> TaskMetric:
    return TaskMetric(key=key, title=title, of=(key,), score=_mean, percent=True)


def _of_text(key: str, title: str, unit: str, score: Callable[[Sequence[float]], float]) -> TaskMetric:
    return TaskMetric(key=key, title=title, of=("nats", unit), score=score, higher_is_better=False)


_ROUGE_1, _ROUGE_2 = _share("rouge_1", "ROUGE-1"), _share("rouge_2", "ROUGE-2")
_ROUGE_L = _share("rouge_l", "ROUGE-L")
METRICS: Mapping[TaskKind, tuple[TaskMetric, ...]] = {
    TaskKind.INSTRUCTION: (_ROUGE_L,),
    TaskKind.SUMMARIZATION: (_ROUGE_L, _ROUGE_1, _ROUGE_2),
    TaskKind.TRANSLATION: (
        TaskMetric(key="bleu", title="BLEU", of=("bleu",), score=_bleu),
        TaskMetric(key="chrf", title="chrF", of=("chrf",), score=_chrf),
    ),
    TaskKind.CHOICE: (
        _share("accuracy", "accuracy by likelihood"),
        _share("accuracy_per_byte", "by likelihood per byte"),
        _share("accuracy_of_answer", "by answer"),
    ),
    TaskKind.EXACT: (_share("exact_match", "exact match"),),
    TaskKind.PERPLEXITY: (
        _of_text("token_perplexity", "perplexity of tokens", "tokens", _perplexity),
        _of_text("word_perplexity", "of words", "words", _perplexity),
        _of_text("byte_perplexity", "of bytes", "bytes", _perplexity),
        _of_text("bits_per_byte", "bits per byte", "bytes", _bits),
    ),
}
"""Of each kind of task, the one that it is judged by first."""


def score_answers(task: Task, rows: Sequence[TaskRow], texts: Sequence[str]) -> list[dict[str, Any]]:
    """Return the scores of one generated answer to each row."""
    references = [row.references for row in rows]
    if task.kind is TaskKind.TRANSLATION:
        scorers = _corpus_scorers().items()
        by_metric = {key: _corpus_counts(scorer, texts, references) for key, scorer in scorers}
        return [{key: found[place] for key, found in by_metric.items()} for place in range(len(texts))]
    if task.kind is TaskKind.CHOICE:
        return [
            {"accuracy_of_answer": int(_is_right_choice(task, row, text))}
            for row, text in zip(rows, texts, strict=True)
        ]
    if task.kind is TaskKind.EXACT:
        return [
            {"exact_match": int(is_exact(task.answer_pattern, text, right))}
            for text, right in zip(texts, references, strict=True)
        ]
    kinds = {metric.key.replace("_", "").replace("l", "L"): metric.key for metric in METRICS[task.kind]}
    found = each_rouge(texts, references, kinds=list(kinds))
    return [{kinds[kind]: score for kind, score in one.items()} for one in found]


def score_choices(row: TaskRow, logprobs: Sequence[float]) -> dict[str, Any]:
    """Return whether the right choice is the likeliest, as a whole and by the byte; of equal ones the first counts."""
    per_byte = [logprob / len(choice.encode()) for logprob, choice in zip(logprobs, row.choices, strict=True)]
    return {
        key: int(row.choices[max(range(len(found)), key=found.__getitem__)] in row.references)
        for key, found in (("accuracy", logprobs), ("accuracy_per_byte", per_byte))
    }


def summarize(kind: TaskKind, scores: Sequence[Scores]) -> dict[str, dict[str, float]]:
    """Return each metric's `value` with `low` and `high`, its 95 % interval; without one that no float can hold."""
    import numpy as np

    found = {}
    for metric in METRICS[kind]:
        if (counts := counts_of(metric, scores)) is None:
            continue
        draws = corpus_draws(counts, metric.score, generator=np.random.default_rng(_SEED))
        if np.isfinite(draws).all():
            low, high = middle(draws)
            found[metric.key] = {"value": corpus_score(metric, counts), "low": low, "high": high}
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A number of two models on the same rows and seeds."""

    first: float
    second: float
    low: float  # of the 95 % interval of second - first
    high: float


def compare_metric(
    metric: TaskMetric, first: Sequence[Scores], second: Sequence[Scores]
) -> Difference | None:
    """Return a number of two models, with what it differs by, rows and seeds drawn together.

    None where they do not have the same rows and seeds, or none.
    """
    import numpy as np

    old, new = counts_of(metric, first), counts_of(metric, second)
    if old is None or new is None or _places(metric, first) != _places(metric, second):
        return None
    draws = [
        corpus_draws(counts, metric.score, generator=np.random.default_rng(_SEED)) for counts in (old, new)
    ]
    if not np.isfinite(draws).all():
        return None
    low, high = middle(draws[1] - draws[0])
    return Difference(first=corpus_score(metric, old), second=corpus_score(metric, new), low=low, high=high)


def corpus_score(metric: TaskMetric, counts: NDArray[np.float64]) -> float:
    """Return a metric's number: the mean over seeds [S] of the score of all rows [R], from what each adds [R][K]."""
    of_seeds = [
        metric.score([math.fsum(column) for column in zip(*rows, strict=True)]) for rows in counts.tolist()
    ]
    return math.fsum(of_seeds) / len(of_seeds)


def counts_of(metric: TaskMetric, scores: Sequence[Scores]) -> NDArray[np.float64] | None:
    """Return what each row adds to the sums, by seed [S][R][K]; None where no row does."""
    import numpy as np

    by_seed: dict[Any, dict[int, list[float]]] = {}
    for row in scores:
        if (counts := metric.counts(row)) is not None:
            by_seed.setdefault(row["seed"], {})[row["row"]] = counts
    if not by_seed:
        return None
    return np.array([[of_row[place] for place in sorted(of_row)] for of_row in by_seed.values()])


def _places(metric: TaskMetric, scores: Sequence[Scores]) -> set[tuple[int, Any]]:
    return {(row["row"], row["seed"]) for row in scores if metric.counts(row) is not None}


def signatures(task: Task, rows: Sequence[TaskRow]) -> dict[str, str]:
    """Return how each metric was computed, as its library says it."""
    if task.kind is TaskKind.TRANSLATION:
        references = [row.references for row in rows]
        texts = [row.references[0] for row in rows]
        for scorer in _corpus_scorers().values():
            _corpus_counts(scorer, texts, references)  # a signature counts the references that were last read
        return {key: str(scorer.get_signature()) for key, scorer in _corpus_scorers().items()}
    if task.kind in (TaskKind.INSTRUCTION, TaskKind.SUMMARIZATION):
        version = importlib.metadata.version("rouge-score")
        text = f"rouge-score|version:{version}|stemmer:yes|measure:f|references:max"
        return {metric.key: text for metric in METRICS[task.kind]}
    return {}


def is_exact(pattern: str, text: str, references: Iterable[str]) -> bool:
    """Tell whether the last match of a pattern in an answer is that in one of the references, or one of them as it is.

    Numbers are compared by value, without thousands' commas and currencies; other text without regard to case, to the
    white space around it and to a full stop at its end. An answer without a match is wrong.
    """
    said = last_match(pattern, text)
    right = (last_match(pattern, reference) or reference for reference in references)
    return said is not None and any(_same(said, one) for one in right)


def last_match(pattern: str, text: str) -> str | None:
    """Return the last match of a pattern, its first group if it has one; None without a match."""
    matches = list(re.finditer(pattern, text))
    if not matches:
        return None
    return matches[-1][1 if matches[-1].re.groups else 0]


def first_named(text: str, choices: Sequence[str]) -> str | None:
    """Return the choice that a text names first, as a whole word in any case; of several at one place, the longest."""
    longest_first = sorted(choices, key=len, reverse=True)
    names = "|".join(f"(?P<c{place}>{re.escape(choice)})" for place, choice in enumerate(longest_first))
    found = re.search(rf"(?<!\w)(?:{names})(?!\w)", text, flags=re.IGNORECASE)
    return longest_first[int(found.lastgroup[1:])] if found and found.lastgroup else None


def _is_right_choice(task: Task, row: TaskRow, text: str) -> bool:
    if task.answer_pattern:
        return is_exact(task.answer_pattern, text, row.references)
    return first_named(text, row.choices) in row.references


def _same(first: str, second: str) -> bool:
    numbers = [_number(one) for one in (first, second)]
    if None not in numbers:
        return numbers[0] == numbers[1]
    return _plain(first) == _plain(second)


def _plain(text: str) -> str:
    return text.strip().rstrip(".").casefold()


def _number(text: str) -> Decimal | None:
    try:
        number = Decimal(_NOISE_IN_NUMBERS.sub("", text).rstrip("."))
    except InvalidOperation:
        return None
    return number if number.is_finite() else None


def _corpus_counts(
    scorer: BLEU | CHRF, texts: Sequence[str], references: Sequence[Sequence[str]]
) -> list[list[int]]:
    """Return a scorer's own counts of each row, which it adds up for the score of a corpus."""
    most = max(map(len, references))
    # sacrebleu wants the first references of all rows, then the second; a row that has no more has None.
    columns: Any = [[row[place] if place < len(row) else None for row in references] for place in range(most)]
    return [list(map(int, counts)) for counts in scorer._extract_corpus_statistics(texts, columns)]


@cache
def _corpus_scorers() -> Mapping[str, BLEU | CHRF]:
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    return {"bleu": BLEU(), "chrf": CHRF()}
