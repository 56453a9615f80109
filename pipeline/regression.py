"""Has a model become worse? A limit for each number, an interval for what it changed by, and a verdict.

As in the gate of `ammd bench`, a number has regressed when the whole 95 % interval of its change is worse than is
allowed, so that what prompts or machine do by chance fails nobody's build; where the limit lies in the interval, the
verdict is undecided. Quality is judged by its difference on the same prompts, speed and memory by their ratio (with the
gate itself), the size of files by its ratio alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ammd.errors import BudgetExceededError, RecipeError
from ammd.runtime.gate import HIGHER_IS_BETTER, Verdict, verdict_of
from ammd.runtime.transfer import METRICS

_DIGITS = 9  # beyond which a difference is rounding
LEAST_PROMPTS = 5  # with fewer, draws of prompts say nothing of other prompts
_SPEED = (*HIGHER_IS_BETTER, "bytes")
MERITS = {metric.key: metric.higher_is_better for metric in METRICS if metric.higher_is_better is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """How much worse a number may become."""

    value: float
    is_share: bool  # of the baseline's number; else in the number's own unit

    def of(self, baseline: float) -> float:
        """Return it in the number's own unit."""
        return self.value * (abs(baseline) if self.is_share else 1)

    def __str__(self) -> str:
        """Return it as it is written on the command line."""
        return f"{self.value:.3g}" if not self.is_share else f"{100 * self.value:.3g}%"


def _absolute(value: float) -> Limit:
    return Limit(value=value, is_share=False)


# All other numbers are shown, and judged where a limit is given.
DEFAULT_LIMITS: Mapping[str, Limit] = {
    "kl_to_teacher_nats": _absolute(0.05),
    "top1_agreement": _absolute(0.03),
    "rouge_l": _absolute(0.03),
    "rouge_l_reference": _absolute(0.03),
    "sampled_nll_under_teacher_nats": _absolute(0.2),
    "repetition": _absolute(0.05),
    "looping_share": _absolute(0.05),
} | dict.fromkeys(_SPEED, Limit(value=0.05, is_share=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What became of one number of one model."""

    model: str
    metric: str
    first: float
    second: float
    change: float  # second - first, or second / first where it is a ratio
    is_ratio: bool
    low: float | None  # of the change's 95 % interval; None where there is none
    high: float | None
    prompts: int | None  # that it rests on
    threads: int | None  # of a speed
    slice: str | None = None  # of a template's prompts, as `language=de`; None: of all
    limit: str | None  # None where it is shown but not judged
    verdict: Verdict | None

    def as_json(self) -> dict[str, Any]:
        """Return it as it stands in the document."""
        return asdict(self) | {"verdict": self.verdict.value if self.verdict else None}


def read_limits(texts: Iterable[str]) -> dict[str, Limit]:
    """Return the default limits with those of `METRIC=VALUE` in their place; `5%` is a share of the baseline's number.

    Raises:
        RecipeError: There is no such number, or the value is none.
    """
    limits = dict(DEFAULT_LIMITS)
    for text in texts:
        metric, equals, value = text.partition("=")
        known = [*MERITS, *_SPEED]
        if metric not in known:
            raise RecipeError(f"`{metric}` is no number that can regress", hint=f"one of {', '.join(known)}")
        try:
            number = float(value.removesuffix("%"))
        except ValueError:
            number = -1
        if not equals or not 0 <= number < float("inf"):
            raise RecipeError(
                f"`{text}` does not say how much worse is allowed", hint="`rouge_l=0.02` or `rouge_l=5%`"
            )
        is_share = value.endswith("%") or metric in _SPEED
        limit = Limit(value=number / (100 if value.endswith("%") else 1), is_share=is_share)
        if metric in _SPEED and limit.value >= 1:
            raise RecipeError(f"`{text}` is no share below 1", hint="`5%` or `0.05`")
        limits[metric] = limit
    return limits


def judge_difference(
    *, low: float, high: float, allowed: float, prompts: int, higher_is_better: bool
) -> Verdict:
    """Return the verdict on a difference that lies between `low` and `high`; `allowed` is how much worse may be."""
    if prompts < LEAST_PROMPTS:
        return Verdict.UNDECIDED
    worse = (-high, -low) if higher_is_better else (low, high)
    if worse[0] > allowed:
        return Verdict.REGRESSION
    return Verdict.FINE if worse[1] <= allowed else Verdict.UNDECIDED


def judge_ratio(metric: str, *, low: float, high: float, limit: Limit) -> Verdict:
    """Return the verdict on a ratio that lies between `low` and `high`."""
    higher = HIGHER_IS_BETTER.get(metric, False)  # a file's size: no
    return verdict_of(low, high, max_regression=limit.value, higher_is_better=higher)


def check_changes(changes: Iterable[Change]) -> None:
    """Check that nothing has regressed.

    Raises:
        BudgetExceededError: Names the first number that has, and how many there are.
    """
    worse = [change for change in changes if change.verdict is Verdict.REGRESSION]
    if not worse:
        return
    more = f" (and {len(worse) - 1} more)" if len(worse) > 1 else ""
    raise BudgetExceededError(
        f"{describe(worse[0])}{more}",
        hint="look at what changed since the baseline; if it is meant, make this run the baseline",
        regressions=[change.as_json() for change in worse],
    )


def describe(change: Change) -> str:
    """Return one line: number, change, interval, limit."""
    relation = "of" if change.is_ratio else "from"
    sides = f"{change.first:.4g} → {change.second:.4g}"
    interval = f", 95 % interval {show_interval(change)}" if change.low is not None else ""
    basis = f" over {change.prompts} prompts" if change.prompts else ""
    where = f" on `{change.slice}`" if change.slice else ""
    return (
        f"`{change.model}`: `{change.metric}`{where} is {show_change(change)} {relation} the baseline's "
        f"({sides}{interval}{basis}); {change.limit} worse is allowed"
    )


def show_change(change: Change, value: float | None = None) -> str:
    """Return a change, or another number on its scale, as tables show it."""
    shown = change.change if value is None else value
    return f"{shown:.3f}" if change.is_ratio else f"{round(shown, _DIGITS) + 0.0:+.4g}"


def show_interval(change: Change) -> str:
    """Return the 95 % interval, or a dash."""
    if change.low is None or change.high is None:
        return "–"
    return f"{show_change(change, change.low)} to {show_change(change, change.high)}"
