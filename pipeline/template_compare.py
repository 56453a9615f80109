"""Two runs judged by test templates: the same prompts, checks of what is said, all together and slice by slice.

Each check scores each answer; what is judged is how much its mean changes from the first model to the second. All
checks and slices of a model and template are looked at together, so their intervals hold together with 95 %
(`simultaneous_intervals`): twenty slices raise no more false alarms than one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ammd.runtime.bootstrap import simultaneous_intervals

from .compare import Comparison, count_wins, differing_settings
from .judged_run import JudgedRun, Pair
from .regression import LEAST_PROMPTS, Change, judge_difference
from .template import Prompt, Template
from .template_answers import Answers, answers_of
from .template_checks import Check, Said

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Scores = NDArray[np.float64]  # one a prompt; NaN where a check does not apply

_SEED = 0
_TIE = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judged:
    """One check's scores of both models."""

    check: Check
    first: Scores
    second: Scores


@dataclass(frozen=True, slots=True, kw_only=True)
class _Test:
    """One number that is judged: `second` less `first`, over the prompts that both have."""

    metric: str
    slice: str | None
    first: Scores
    second: Scores
    max_worse: float


def compare_by_templates(
    first: JudgedRun,
    second: JudgedRun,
    pairs: Sequence[Pair],
    *,
    templates: Mapping[str, Template],
    cache: Path,
    samples: int,
) -> Comparison:
    """Let the models of each pair answer the templates' prompts, and compare what the checks find.

    The teacher that some checks look at is the first run's, for both.

    Raises:
        ArtifactError: A model is not there any more.
        EngineError: A model cannot answer.
    """
    changes: list[Change] = []
    wins: list[dict[str, Any]] = []
    shown: list[dict[str, Any]] = []
    for name, template in templates.items():
        teacher: Answers | None = None
        if template.needs_teacher:
            teacher = answers_of(Path(first.row("teacher")["path"]), template, cache=cache)
        for pair in pairs:
            sides = [
                answers_of(Path(run.row(model)["path"]), template, cache=cache)
                for run, model in ((first, pair.first), (second, pair.second))
            ]
            judged = [_judge(check, template, sides, teacher) for check in template.checks]
            changes += _changes(pair.label, name, template, judged)
            wins += [count_wins(pair.label, one.check.label, list(_gains(one)), tie=_TIE) for one in judged]
            shown += _samples(pair.label, template, judged, sides, teacher)[:samples]
    return Comparison(
        first=first.label,
        second=second.label,
        rows=[],
        changes=tuple(changes),
        speed_refusal=None,
        wins=wins,
        samples=shown,
        settings=differing_settings(first.summary["recipe"], second.summary["recipe"]),
        templates=tuple(templates),
    )


def _judge(check: Check, template: Template, sides: Sequence[Answers], teacher: Answers | None) -> _Judged:
    """Score both models' answers."""
    import numpy as np

    def score(place: int, prompt: Prompt, answers: Answers) -> float:
        said = Said(
            text=answers[place]["text"],
            ended=answers[place]["ended"],
            expected=prompt.expected,
            teacher_text=teacher[place]["text"] if teacher else None,
        )
        applies = check.category in (None, prompt.category)
        found = check.score(said) if applies else None
        return np.nan if found is None else found

    first, second = (
        np.array([score(place, prompt, answers) for place, prompt in enumerate(template.prompts)])
        for answers in sides
    )
    return _Judged(check=check, first=first, second=second)


def _changes(model: str, name: str, template: Template, judged: Sequence[_Judged]) -> Iterator[Change]:
    """Give the change of each check, over all prompts and over each slice that has enough of them."""
    import numpy as np

    tests = [test for one in judged for test in _tests(name, template, one)]
    if not tests:
        return
    intervals = simultaneous_intervals(
        np.array([test.second - test.first for test in tests]), generator=np.random.default_rng(_SEED)
    )
    for test, (change, low, high) in zip(tests, intervals, strict=True):
        counts = ~np.isnan(test.second)
        prompts = int(counts.sum())
        yield Change(
            model=model,
            metric=test.metric,
            first=float(test.first[counts].mean()),
            second=float(test.second[counts].mean()),
            change=change,
            is_ratio=False,
            low=low,
            high=high,
            prompts=prompts,
            threads=None,
            slice=test.slice,
            limit=f"{test.max_worse:.3g}",
            verdict=judge_difference(
                low=low, high=high, allowed=test.max_worse, prompts=prompts, higher_is_better=True
            ),
        )


def _tests(name: str, template: Template, one: _Judged) -> Iterator[_Test]:
    import numpy as np

    metric = f"{name}: {one.check.label}"
    if np.isnan(one.second).all():
        return
    if one.check.at_least:
        floor = np.where(np.isnan(one.second), np.nan, one.check.at_least)
        yield _Test(metric=f"{metric}, floor", slice=None, first=floor, second=one.second, max_worse=0)
    everyone: tuple[str | None, Any] = (None, np.ones(len(one.second), dtype=bool))
    for label, members in (everyone, *_slices(template).items()):
        counts = members & ~np.isnan(one.second)
        if label is None or counts.sum() >= LEAST_PROMPTS:
            yield _Test(
                metric=metric,
                slice=label,
                first=np.where(counts, one.first, np.nan),
                second=np.where(counts, one.second, np.nan),
                max_worse=one.check.max_worse,
            )


def _slices(template: Template) -> dict[str, NDArray[np.bool_]]:
    """Return which prompts are of which slice, by `category=code` and the like."""
    import numpy as np

    found = {}
    for by in template.slices:
        values = [getattr(prompt, by) for prompt in template.prompts]
        for value in dict.fromkeys(value for value in values if value is not None):
            found[f"{by}={value}"] = np.array([one == value for one in values])
    return found


def _gains(one: _Judged) -> Iterator[float]:
    import numpy as np

    yield from (float(gain) for gain in one.second - one.first if not np.isnan(gain))


def _samples(
    model: str,
    template: Template,
    judged: Sequence[_Judged],
    sides: Sequence[Answers],
    teacher: Answers | None,
) -> list[dict[str, Any]]:
    """Return the prompts that lost most over all checks, with both answers and what was lost."""
    import numpy as np

    lost = np.nansum([one.first - one.second for one in judged], axis=0)
    order = [int(place) for place in np.argsort(-lost, kind="stable") if lost[place] > _TIE]
    return [
        {
            "model": model,
            "prompt": template.prompts[place].prompt,
            "teacher_text": teacher[place]["text"] if teacher else None,
            "first": sides[0][place]["text"],
            "second": sides[1][place]["text"],
            "lost": [one.check.label for one in judged if one.first[place] - one.second[place] > _TIE],
        }
        for place in order
    ]
