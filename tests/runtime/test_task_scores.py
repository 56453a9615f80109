from __future__ import annotations

import math
import statistics
from collections import Counter
from typing import Any

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF

from ammd.runtime.bootstrap import DRAWS, corpus_draws, middle
from ammd.runtime.task_scores import (
    METRICS,
    compare_metric,
    first_named,
    is_exact,
    score_answers,
    score_choices,
    signatures,
    summarize,
)
from ammd.task import Task, TaskKind
from ammd.task_data import TaskRow

ANSWERS = (
    "The cat sat on the mat, happily.",
    "Er geht heute nicht in die Schule!",
    "",
    "Lists of running dogs are longer than lists of cats; the runner runs.",
    "A completely different sentence of nine plain words here.",
)
REFERENCES = (
    ("A cat was sitting on a mat.", "The cat sat happily on the mat."),
    ("Heute geht er nicht zur Schule.",),
    ("Something.", "Nothing.", "Anything at all."),
    ("The list of dogs that run is longer than the cats' list; runners run.",),
    ("A completely different sentence of ten plain words stands here.",),
)


def task_of(kind: TaskKind, **more: Any) -> Task:
    asked = {"choices": ("yes", "no")} if kind is TaskKind.CHOICE else {}
    fields = {"prompt": "{q}", "references": "a", "data": {"test": "x.jsonl"}, **asked, **more}
    return Task(name="t", version=1, description="", kind=kind, **fields)


def rows_of(references: Any = REFERENCES, choices: tuple[str, ...] = ()) -> list[TaskRow]:
    return [
        TaskRow(prompt="q", references=right, choices=choices, line=line)
        for line, right in enumerate(references, start=1)
    ]


def scored(kind: TaskKind, answers: Any = ANSWERS, *, seed: int | None = None, **more: Any) -> list[dict]:
    found = score_answers(task_of(kind, **more), rows_of(), answers)
    return [{"row": row.line, "seed": seed, **one} for row, one in zip(rows_of(), found, strict=True)]


def columns_of(references: Any) -> list[list[str | None]]:
    """Return references as sacrebleu takes them: the first of each row, then the second, ..."""
    return [
        [one[place] if place < len(one) else None for one in references]
        for place in range(max(map(len, references)))
    ]


def test_rouge_is_that_of_the_reference_scorer_against_the_best_reference() -> None:
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    rows = scored(TaskKind.SUMMARIZATION)
    for row, answer, references in zip(rows, ANSWERS, REFERENCES, strict=True):
        for key, kind in (("rouge_1", "rouge1"), ("rouge_2", "rouge2"), ("rouge_l", "rougeL")):
            assert row[key] == max(scorer.score(one, answer)[kind].fmeasure for one in references)
    assert rows[0]["rouge_l"] > scorer.score(REFERENCES[0][0], ANSWERS[0])["rougeL"].fmeasure
    value = summarize(TaskKind.SUMMARIZATION, rows)["rouge_l"]["value"]
    assert value == statistics.fmean(row["rouge_l"] for row in rows)


def test_stemming_counts_forms_of_a_word_as_one() -> None:
    found = score_answers(task_of(TaskKind.INSTRUCTION), rows_of([("runs",)]), ["running"])
    assert found == [{"rouge_l": 1.0}]


def test_bleu_and_chrf_are_sacrebleus_to_the_last_digit() -> None:
    columns = columns_of(REFERENCES)
    rows = scored(TaskKind.TRANSLATION)
    found = summarize(TaskKind.TRANSLATION, rows)
    bleu, chrf = BLEU(), CHRF()
    assert found["bleu"]["value"] == bleu.corpus_score(ANSWERS, columns).score > 0
    assert found["chrf"]["value"] == chrf.corpus_score(ANSWERS, columns).score > 0
    said = signatures(task_of(TaskKind.TRANSLATION), rows_of())
    assert said == {"bleu": str(bleu.get_signature()), "chrf": str(chrf.get_signature())}
    assert said["bleu"].startswith("nrefs:var|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    alone = BLEU().corpus_score([ANSWERS[1]], [[REFERENCES[1][0]]])
    assert rows[1]["bleu"] == [alone.sys_len, alone.ref_len, *alone.counts, *alone.totals]


def test_signature_counts_a_fixed_number_of_references() -> None:
    rows = rows_of([("a b", "c d"), ("e f", "g h")])
    assert signatures(task_of(TaskKind.TRANSLATION), rows)["bleu"].startswith("nrefs:2|")


def test_a_drawn_corpus_has_the_bleu_that_sacrebleu_gives_it() -> None:
    """Rows drawn with replacement, once by us from their counts and once by writing the corpus out."""
    rows = [
        row for row in scored(TaskKind.TRANSLATION) if row["row"] != 3
    ]  # with one reference each but the first
    metric = METRICS[TaskKind.TRANSLATION][0]
    counts = np.array([[metric.counts(row) for row in rows]])
    drawn = corpus_draws(counts, metric.score, generator=np.random.default_rng(3))
    generator = np.random.default_rng(3)
    generator.integers(1, size=(DRAWS, 1))
    times = generator.multinomial(len(rows) - 1, np.full(len(rows), 1 / len(rows)), size=DRAWS)
    for draw in range(0, DRAWS, 97):
        places = [rows[place]["row"] - 1 for place, count in enumerate(times[draw]) for _ in range(count)]
        columns = columns_of([REFERENCES[place] for place in places])
        assert drawn[draw] == BLEU().corpus_score([ANSWERS[place] for place in places], columns).score


def test_the_interval_of_three_rows_is_that_of_all_corpora_of_two() -> None:
    counts = np.array([[[1.0, 1.0], [0.0, 1.0], [0.0, 1.0]]])
    drawn = corpus_draws(counts, lambda sums: sums[0] / sums[1], generator=np.random.default_rng(0))
    shares = {value: count / DRAWS for value, count in Counter(drawn.tolist()).items()}
    assert shares == {
        0.0: pytest.approx(4 / 9, abs=0.05),
        0.5: pytest.approx(4 / 9, abs=0.05),
        1.0: pytest.approx(1 / 9, abs=0.05),
    }
    assert middle(drawn) == (0, 1)


def test_drawn_answers_count_as_the_mean_over_seeds_and_widen_the_interval() -> None:
    half = [(text, "") for text in ANSWERS]
    rows = [
        row
        for seed in range(2)
        for row in scored(TaskKind.TRANSLATION, [texts[seed] for texts in half], seed=seed)
    ]
    found = summarize(TaskKind.TRANSLATION, rows)["chrf"]
    alone = [
        summarize(TaskKind.TRANSLATION, [row for row in rows if row["seed"] == seed])["chrf"]["value"]
        for seed in range(2)
    ]
    assert found["value"] == statistics.fmean(alone)
    assert found["low"] == 0  # the seed that says nothing
    assert found["high"] > alone[0] * 0.8


def test_a_model_is_not_better_than_itself_and_better_than_a_worse_one() -> None:
    metric = METRICS[TaskKind.INSTRUCTION][0]
    rows = scored(TaskKind.INSTRUCTION)
    same = compare_metric(metric, rows, rows)
    assert same
    assert (same.second - same.first, same.low, same.high) == (0, 0, 0)
    worse = [{**row, "rouge_l": row["rouge_l"] - 0.1} for row in rows]
    better = compare_metric(metric, worse, rows)
    assert better
    assert (better.second - better.first, better.low, better.high) == pytest.approx((0.1, 0.1, 0.1))
    assert compare_metric(metric, rows, rows[1:]) is None


def test_likelihood_chooses_as_a_whole_and_by_the_byte() -> None:
    row = TaskRow(prompt="q", references=("größer",), choices=("no", "größer"), line=1)
    assert score_choices(row, [-2.0, -3.0]) == {"accuracy": 0, "accuracy_per_byte": 1}  # -1 and -3/8 a byte
    assert score_choices(row, [-2.0, -9.0]) == {
        "accuracy": 0,
        "accuracy_per_byte": 0,
    }  # -9/8; -9/6 by characters too
    assert score_choices(row, [-2.0, -1.9]) == {"accuracy": 1, "accuracy_per_byte": 1}
    tie = TaskRow(prompt="q", references=("a",), choices=("a", "b"), line=1)
    assert score_choices(tie, [-1.0, -1.0]) == {"accuracy": 1, "accuracy_per_byte": 1}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("Yes, because no one knows.", "yes"),
        ("I know nothing. NO!", "no"),
        ("not sure, no", "not sure"),
        ("Nobody", None),
        ("It is (B), not A.", "B"),
        ("", None),
    ],
)
def test_the_first_choice_that_a_text_names_is_its_answer(text: str, named: str | None) -> None:
    assert first_named(text, ("yes", "no", "not sure", "B")) == named


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("5 + 7 = 12. The answer is #### 1,234", True),
        ("#### 12 no, #### 1234.00", True),
        ("#### $1234.", True),
        ("#### 1235", False),
        ("1234", False),
        ("", False),
    ],
)
def test_exact_match_reads_the_last_answer_and_numbers_by_value(text: str, right: bool) -> None:
    assert is_exact(r"#### ([^\n#]+)", text, ["Some steps.\n#### 1,234"]) is right


def test_a_choice_may_be_read_by_a_pattern() -> None:
    task = task_of(TaskKind.CHOICE, answer_pattern=r"answer is (\w+)")
    rows = rows_of([("yes",), ("yes",)], choices=("yes", "no"))
    found = score_answers(task, rows, ["No way... the answer is Yes.", "yes"])
    assert [one["accuracy_of_answer"] for one in found] == [1, 0]


def test_perplexities_are_of_all_texts_together_and_none_is_given_that_no_float_holds() -> None:
    rows = [
        {"row": 1, "seed": None, "nats": 4 * math.log(2), "tokens": 4, "words": 2, "bytes": 8},
        {"row": 2, "seed": None, "nats": 12 * math.log(2), "tokens": 4, "words": 2, "bytes": 8},
    ]
    found = summarize(TaskKind.PERPLEXITY, rows)
    assert found["token_perplexity"]["value"] == pytest.approx(4)
    assert found["word_perplexity"]["value"] == pytest.approx(16)
    assert found["bits_per_byte"] == {
        "value": pytest.approx(1),
        "low": pytest.approx(0.5),
        "high": pytest.approx(1.5),
    }
    endless = [{**row, "words": 1, "nats": 1e4} for row in rows]
    assert "word_perplexity" not in summarize(TaskKind.PERPLEXITY, endless)
