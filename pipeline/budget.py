"""Does each exported file keep its budget? Judged on a run's summary, so that no stage is made anew for it.

The number that counts is the one in the table. Of a median with an interval it is the median, and a row says so where
the limit lies within the interval. A `noisy` measurement counts and says that it is; an `invalid` one, one that failed
or was never made, and a score that cannot be compared with its reference keep no limit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ammd.artifact import read_manifest
from ammd.errors import ArtifactError, BudgetExceededError

from .budget_settings import SHARE, BudgetSettings
from .columns import Better, column_of, show, value_of
from .runs import find_run, read_summary

_UNITS = {
    "bytes": "bytes",
    "peak_rss_bytes": "bytes",
    "ttft_s": "s",
    "decode_tokens_per_s": "tokens/s",
    "kl_to_teacher_nats": "nats",
}
# The teacher's own texts are what ROUGE-L is against, so its score is 1.
_OF_TEACHER = {"rouge_l": "rouge_l", "rouge_l_reference": "task_score_kept"}
_SHARES = {f"rouge_l{SHARE}": "ROUGE-L kept", f"rouge_l_reference{SHARE}": "ROUGE-L of references kept"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One limit of one file."""

    artifact: str
    metric: str
    unit: str
    limit: float
    value: float | None  # None: there is no number that could keep the limit
    met: bool
    over_by: float | None = (
        None  # how far beyond the limit, in `unit`; None where it is kept, or without a value
    )
    low: float | None = None  # 95 % interval of `value`
    high: float | None = None
    why: str = ""  # what has to be known beside the number


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """Another run, whose scores are 100 %."""

    name: str  # as messages call it
    quality: Mapping[str, Mapping[str, Any]]  # by file
    heldout: str  # hash of the prompts that were answered


def find_baseline(budget: BudgetSettings | None, *, runs_dir: Path) -> Path | None:
    """Return the folder of the run that a budget refers to, None where it refers to none.

    Raises:
        ArtifactError: There is no such run, or it is not finished.
    """
    if budget is None or budget.baseline is None:
        return None
    folder = find_run(budget.baseline, runs_dir=runs_dir)
    read_summary(folder)
    return folder


def judge(
    budget: BudgetSettings | None, summary: Mapping[str, Any], *, heldout: str, runs_dir: Path
) -> dict[str, Any] | None:
    """Return the part of a summary that is called `budget`; None without one.

    Args:
        budget: Of the recipe.
        summary: The run's document.
        heldout: Hash of the held-out prompts; empty before they were answered.
        runs_dir: Where a baseline is looked for.
    """
    if budget is None:
        return None
    if not summary["artifacts"]:
        return {"met": None, "rows": []}
    try:
        baseline: Baseline | str | None = _read_baseline(budget, runs_dir=runs_dir)
    except ArtifactError as exc:  # it was there when the run began
        baseline = str(exc)
    findings = [
        _compare(row, metric, limit, baseline=baseline, heldout=heldout)
        for row in summary["artifacts"]
        for metric, limit in budget.limits_of(row["name"]).items()
    ]
    return {
        "met": all(finding.met for finding in findings),
        "rows": [asdict(finding) for finding in findings],
    }


def check_budget(verdict: Mapping[str, Any] | None, *, hint: str = "") -> None:
    """Check that every limit is kept.

    Raises:
        BudgetExceededError: Names the first that is not, by how much, and how many there are.
    """
    missed = [row for row in (verdict or {}).get("rows", ()) if not row["met"]]
    if not missed:
        return
    first, more = missed[0], f" (and {len(missed) - 1} more)" if len(missed) > 1 else ""
    raise BudgetExceededError(f"`{first['artifact']}`: {describe(first)}{more}", hint=hint, missed=missed)


def describe(row: Mapping[str, Any]) -> str:
    """Return one sentence on a limit that is not kept."""
    title, limit = title_of(row["metric"]), show_value(row, "limit")
    word = "least" if _better(row["metric"]) is Better.HIGHER else "most"
    if row["value"] is None:
        return f"{title} has to be at {word} {limit}: {row['why']}"
    text = f"{title} is {show_value(row, 'value')}, at {word} {limit} is allowed"
    return f"{text}: {row['why']}" if row["why"] else text


def title_of(metric: str) -> str:
    """Return what tables call a metric."""
    return _SHARES[metric] if metric.endswith(SHARE) else column_of(metric).title


def show_value(row: Mapping[str, Any], key: str) -> str:
    """Return `limit`, `value` or `over_by` of a row with its unit; `–` where there is none."""
    value, metric = row[key], row["metric"]
    if value is None:
        return "–"
    if metric.endswith(SHARE):
        return f"{100 * value:.1f} %"
    column = column_of(metric)
    return f"{show(value, column)} {column.unit}"


def _compare(
    row: Mapping[str, Any], metric: str, limit: float, *, baseline: Baseline | str | None, heldout: str
) -> Finding:
    if metric.endswith(SHARE):
        value, why = _share(row, metric.removesuffix(SHARE), baseline=baseline, heldout=heldout)
        return _finding(row["name"], metric, limit, value=value, why=why)
    column = column_of(metric)
    value = value_of(row, column)
    if column.section != "bench":
        why = "it was not measured" if value is None else ""
        return _finding(row["name"], metric, limit, value=value, why=why)
    return _compare_measured(row, metric, limit, value=value)


def _compare_measured(row: Mapping[str, Any], metric: str, limit: float, *, value: float | None) -> Finding:
    record: Mapping[str, Any] = row["bench"] or {}
    if failure := record.get("failure"):
        return _finding(row["name"], metric, limit, why=f"it could not be measured, {failure['ended']}")
    if value is None:
        return _finding(row["name"], metric, limit, why="it was not measured")
    validity = record.get("validity")
    reasons = "; ".join(record.get("validity_reasons", ()))
    low, high = record.get(f"{metric}_low"), record.get(f"{metric}_high")
    notes = [f"the measurement is {validity}, {reasons}"] if validity in ("noisy", "invalid") else []
    if low is not None and high is not None and low < limit < high:
        notes.append("the limit lies within the 95 % interval")
    return _finding(
        row["name"],
        metric,
        limit,
        value=value,
        why="; ".join(notes),
        low=low,
        high=high,
        usable=validity != "invalid",
    )


def _finding(
    artifact: str,
    metric: str,
    limit: float,
    *,
    value: float | None = None,
    why: str = "",
    low: float | None = None,
    high: float | None = None,
    usable: bool = True,
) -> Finding:
    beyond = None
    if value is not None:
        beyond = limit - value if _better(metric) is Better.HIGHER else value - limit
    return Finding(
        artifact=artifact,
        metric=metric,
        unit=_UNITS.get(metric, "share"),
        limit=limit,
        value=value,
        met=usable and beyond is not None and beyond <= 0,
        over_by=beyond if beyond is not None and beyond > 0 else None,
        low=low,
        high=high,
        why=why,
    )


def _better(metric: str) -> Better:
    return Better.HIGHER if metric.endswith(SHARE) else column_of(metric).better


def _share(
    row: Mapping[str, Any], score: str, *, baseline: Baseline | str | None, heldout: str
) -> tuple[float | None, str]:
    """Return which share of the teacher's or the baseline's score a file keeps, or why that cannot be said."""
    name, own = row["name"], row["quality"] or {}
    if isinstance(baseline, str):
        return None, baseline
    found = own.get(_OF_TEACHER[score] if baseline is None else score)
    if found is None:
        return None, "it was not measured"
    if baseline is None:
        return found, ""
    other = baseline.quality.get(name)
    if other is None:
        return None, f"{baseline.name} has no `{name}`"
    if not (whole := other.get(score)):
        return None, f"{baseline.name} has {'no' if whole is None else 'nothing in'} `{score}`"
    if baseline.heldout != heldout:
        return None, f"{baseline.name} answered other prompts"
    return found / whole, _unlike(own, other, baseline.name)


def _unlike(own: Mapping[str, Any], other: Mapping[str, Any], name: str) -> str:
    counts = own.get("prompts"), other.get("prompts")
    return "" if counts[0] == counts[1] else f"on {counts[0]} prompts, {name} on {counts[1]}"


def _read_baseline(budget: BudgetSettings, *, runs_dir: Path) -> Baseline | None:
    folder = find_baseline(budget, runs_dir=runs_dir)
    if folder is None:
        return None
    found = read_summary(folder)
    return Baseline(
        name=f"the baseline {found['run']}",
        quality={row["name"]: row["quality"] for row in found["artifacts"] if row["quality"]},
        heldout=read_manifest(folder / "evaluate").inputs["heldout"],
    )


def missed_cells(verdict: Mapping[str, Any] | None) -> frozenset[tuple[str, str]]:
    """Return file and column of every number in the table of models that misses its limit."""
    rows: Sequence[Mapping[str, Any]] = (verdict or {}).get("rows", ())
    return frozenset((row["artifact"], row["metric"].removesuffix(SHARE)) for row in rows if not row["met"])
