"""Two runs, or two models, side by side as one document (`ammd.compare/1`): is the second better than the first?

Quality on the same prompts with paired bootstrap intervals, wins and losses prompt by prompt, speed and memory with the
gate's test, size, the answers that differ most, and the settings that differ.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ammd.errors import ArtifactError, NotComparableError
from ammd.runtime.bench_document import SCHEMA as BENCH_SCHEMA
from ammd.runtime.bench_document import BenchDocument, parse_document
from ammd.runtime.bootstrap import paired_interval
from ammd.runtime.gate import LEAST_PROCESSES
from ammd.runtime.gate import compare as compare_speed
from ammd.runtime.quality import each_rouge_l
from ammd.runtime.transfer import METRICS, Metric

from .columns import used_columns, value_of
from .compare_tasks import task_changes
from .judged_run import JudgedRun, Pair, check_same_prompts
from .regression import MERITS, Change, Limit, check_changes, judge_difference, judge_ratio
from .run_facts import flatten

SCHEMA = "ammd.compare/1"
SAMPLES = 3
_SEED = 0  # of all intervals
# By what a prompt is won, and the difference within which neither wins: of a likelihood, what bfloat16 rounds.
_WON_BY = {"rouge_l": 1e-9, "nll_under_teacher_nats": 0.01}


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Everything that two runs differ in. Fields as in the document."""

    first: str
    second: str
    rows: list[dict[str, Any]]
    changes: tuple[Change, ...]
    speed_refusal: str | None  # why speed is not compared; None where it is, or was not to be
    wins: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    settings: list[dict[str, Any]]
    templates: tuple[str, ...] = ()  # by which both are judged, instead of by the held-out prompts

    def as_json(self) -> dict[str, Any]:
        """Return the document."""
        return {
            "schema": SCHEMA,
            "first": self.first,
            "second": self.second,
            "templates": list(self.templates),
            "rows": self.rows,
            "changes": [change.as_json() for change in self.changes],
            "speed_not_compared": self.speed_refusal,
            "wins": self.wins,
            "samples": self.samples,
            "settings": self.settings,
        }

    def check(self) -> None:
        """Check that nothing has become worse, and that speed was compared where it was to be.

        Raises:
            BudgetExceededError: A number has regressed.
            NotComparableError: A gate that cannot judge does not let pass.
        """
        check_changes(self.changes)
        if self.speed_refusal is not None:
            raise NotComparableError(
                f"speed and memory cannot be judged: {self.speed_refusal}",
                hint="measure both on one machine with `--set bench.processes=3`, or judge with `--quality-only`",
            )


def compare_runs(
    first: JudgedRun,
    second: JudgedRun,
    pairs: Sequence[Pair],
    *,
    limits: Mapping[str, Limit],
    with_speed: bool = True,
    samples: int = SAMPLES,
) -> Comparison:
    """Compare a baseline with another run, by what both stand for on the same held-out prompts.

    Args:
        first: The baseline.
        second: What is judged.
        pairs: Models of both.
        limits: How much worse a number may become; others are shown, not judged.
        with_speed: Compare speed and memory too.
        samples: How many answers are shown side by side, a pair.

    Raises:
        NotComparableError: The prompts or the teacher's texts to them differ.
    """
    check_same_prompts(first, second)
    changes = [change for pair in pairs for change in _quality(first, second, pair, limits)]
    changes += [change for pair in pairs for change in task_changes(first, second, pair)]
    changes += [_size(first, second, pair, limits["bytes"]) for pair in pairs]
    refusal: str | None = None
    if with_speed:
        try:
            changes += _speed(first, second, pairs, limits)
        except (ArtifactError, NotComparableError) as exc:
            refusal = str(exc)
    return Comparison(
        first=first.label,
        second=second.label,
        rows=list(_all_numbers(first, second, pairs)),
        changes=tuple(changes),
        speed_refusal=refusal,
        wins=[win for pair in pairs for win in _wins(first, second, pair)],
        samples=[sample for pair in pairs for sample in _samples(first, second, pair)[:samples]],
        settings=differing_settings(first.summary["recipe"], second.summary["recipe"]),
    )


def _quality(
    first: JudgedRun, second: JudgedRun, pair: Pair, limits: Mapping[str, Limit]
) -> Iterator[Change]:
    """Give the change of every number of quality that both models have on the same prompts."""
    old, new = first.scores[pair.first], second.scores[pair.second]
    for metric in METRICS:
        terms = [
            (before, after)
            for prompt in pair.prompts
            if (before := metric.terms(old[prompt])) and (after := metric.terms(new[prompt]))
        ]
        if all(sum(side[1] for side in sides) for sides in zip(*terms, strict=True)) and terms:
            yield _change_of(metric, terms, model=pair.label, limit=limits.get(metric.key))


def _change_of(
    metric: Metric,
    terms: Sequence[tuple[tuple[float, float], tuple[float, float]]],
    *,
    model: str,
    limit: Limit | None,
) -> Change:
    import numpy as np

    before, after = np.array(terms, dtype=np.float64).transpose(1, 2, 0)  # [of and over][prompts]
    difference, low, high = paired_interval(
        after[:1].tolist(),
        before[:1].tolist(),
        generator=np.random.default_rng(_SEED),
        first_over=after[1:].tolist(),
        second_over=before[1:].tolist(),
    )
    value = float(before[0].sum() / before[1].sum())
    verdict = None
    if limit is not None:
        verdict = judge_difference(
            low=low,
            high=high,
            allowed=limit.of(value),
            prompts=len(terms),
            higher_is_better=MERITS[metric.key],
        )
    return Change(
        model=model,
        metric=metric.key,
        first=value,
        second=value + difference,
        change=difference,
        is_ratio=False,
        low=low,
        high=high,
        prompts=len(terms),
        threads=None,
        limit=str(limit) if limit else None,
        verdict=verdict,
    )


def _size(first: JudgedRun, second: JudgedRun, pair: Pair, limit: Limit) -> Change:
    old, new = (run.row(name)["bytes"] for run, name in ((first, pair.first), (second, pair.second)))
    ratio = new / old
    return Change(
        model=pair.label,
        metric="bytes",
        first=old,
        second=new,
        change=ratio,
        is_ratio=True,
        low=None,
        high=None,
        prompts=None,
        threads=None,
        limit=str(limit),
        verdict=judge_ratio("bytes", low=ratio, high=ratio, limit=limit),
    )


def _speed(
    first: JudgedRun, second: JudgedRun, pairs: Sequence[Pair], limits: Mapping[str, Limit]
) -> list[Change]:
    """Return the change of speed and memory.

    Raises:
        NotComparableError: The gate refuses: other machines, settings or engines, too few processes, a row is invalid.
        ArtifactError: There are no numbers of a model of both.
    """
    import numpy as np

    documents = []
    for run, names in ((first, [pair.first for pair in pairs]), (second, [pair.second for pair in pairs])):
        document = _bench_of(run, dict(zip([pair.label for pair in pairs], names, strict=True)))
        least = min(
            (row.processes for row in document.rows), default=LEAST_PROCESSES
        )  # failures: see the gate
        if least < LEAST_PROCESSES:
            raise NotComparableError(
                f"speed in `{run.label}` rests on {least} of at least {LEAST_PROCESSES} processes"
            )
        documents.append(document)
    gate = compare_speed(*documents, max_regression=0, generator=np.random.default_rng(_SEED))
    changes = []
    for found in gate.findings:
        limit = limits[found.metric]
        ends = [found.ratio if end is None else end for end in (found.low, found.high)]
        changes.append(
            Change(
                model=found.model,
                metric=found.metric,
                first=found.baseline,
                second=found.current,
                change=found.ratio,
                is_ratio=True,
                low=found.low,
                high=found.high,
                prompts=None,
                threads=found.threads,
                limit=str(limit),
                verdict=judge_ratio(found.metric, low=ends[0], high=ends[1], limit=limit),
            )
        )
    return changes


def _bench_of(run: JudgedRun, names: Mapping[str, str]) -> BenchDocument:
    """Return what the bench stage measured of some models, under names that both sides share."""
    bench = {}
    for label, name in names.items():
        if record := run.row(name).get("bench"):
            bench[label] = record | {"file": record.get("file", {}) | {"name": label}}
    document = {"schema": BENCH_SCHEMA, "bench": bench, "machine": run.summary["measured_on"]}
    return parse_document(document, label=f"{run.label}: bench")


def _wins(first: JudgedRun, second: JudgedRun, pair: Pair) -> Iterator[dict[str, Any]]:
    """Give how many prompts the second model wins, ties and loses."""
    for key, tie in _WON_BY.items():
        gains = [
            (after - before) * (1 if MERITS[key] else -1)
            for prompt in pair.prompts
            if (before := first.scores[pair.first][prompt].get(key)) is not None
            and (after := second.scores[pair.second][prompt].get(key)) is not None
        ]
        yield count_wins(pair.label, key, gains, tie=tie)


def count_wins(model: str, by: str, gains: Sequence[float], *, tie: float) -> dict[str, Any]:
    """Return how many prompts are won, tied and lost, each by its gain."""
    return {
        "model": model,
        "by": by,
        "wins": sum(gain > tie for gain in gains),
        "ties": sum(abs(gain) <= tie for gain in gains),
        "losses": sum(gain < -tie for gain in gains),
    }


def _samples(first: JudgedRun, second: JudgedRun, pair: Pair) -> list[dict[str, Any]]:
    """Return both models' answers, the most different first; equal ones are left out."""
    prompts = [
        prompt
        for prompt in pair.prompts
        if pair.first in first.lines[prompt]["answers"] and pair.second in second.lines[prompt]["answers"]
    ]
    answers = [(first.answer(pair.first, prompt), second.answer(pair.second, prompt)) for prompt in prompts]
    likeness = each_rouge_l([new for _, new in answers], [old for old, _ in answers])
    order = sorted(range(len(prompts)), key=lambda place: likeness[place])
    return [
        {
            "model": pair.label,
            "prompt": first.lines[prompts[place]]["prompt"],
            "teacher_text": first.lines[prompts[place]]["teacher_text"],
            "first": answers[place][0],
            "second": answers[place][1],
            "likeness": likeness[place],
        }
        for place in order
        if answers[place][0] != answers[place][1]
    ]


def differing_settings(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the dotted keys under which two recipes differ, with both values; null where one has no such key."""
    old, new = dict(flatten(first)), dict(flatten(second))
    return [
        {"key": key, "first": old.get(key), "second": new.get(key)}
        for key in dict.fromkeys([*old, *new])
        if old.get(key) != new.get(key)
    ]


def _all_numbers(first: JudgedRun, second: JudgedRun, pairs: Sequence[Pair]) -> Iterator[dict[str, Any]]:
    """Give each number of each pair as the tables of both runs have it."""
    for pair in pairs:
        sides = [first.row(pair.first), second.row(pair.second)]
        for column in used_columns(sides):
            old, new = (value_of(row, column) for row in sides)
            yield {
                "model": pair.label,
                "metric": column.key,
                "first": old,
                "second": new,
                "ratio": new / old if old and new is not None else None,
                "better": column.better.value,
            }
