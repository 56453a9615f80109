"""The report of several runs: who meets the budget, what is better than what, what it cost, how they answer.

One page with all numbers of all runs, for which each run's summary, curves and answers are read and nothing is verified
or measured again. What one run has beyond that is on the run's own page, to which this one points.
"""

from __future__ import annotations

import datetime
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ammd.artifact import MANIFEST_NAME
from ammd.durable import write_text
from ammd.errors import ArtifactError

from .answer_diff import TEACHER, beside_teacher
from .definitions import CURVES, read_definitions
from .page import GENERATOR, SERIES, PageTable, render_page, text_table
from .page_tables import costs_table, models_table
from .plots import draw_together
from .report import SHOWN_ANSWERS, read_lines
from .run_facts import flatten
from .run_folder import REPORT_NAME
from .run_plots import draw_costs
from .runs import read_summary
from .stages import STAGES
from .table import model_rows
from .tradeoff import build_tradeoff
from .verdict import Judgement, Statement, Verdict, best_of, judge

SCHEMA = "ammd.report/1"
_DRAWN = 8  # newest runs whose curves and answers are shown: as many as there are colours
_STUDENT = "student"
_LONGEST_VALUE = 60  # characters of a setting


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedRun:
    """What is known of one run."""

    name: str
    link: str  # to its own page, relative to this one; "" where it has none
    made: datetime.datetime
    summary: Mapping[str, Any]
    curves: Sequence[Mapping[str, Any]]
    answers: Sequence[Mapping[str, Any]]


def report_runs(folders: Sequence[Path], *, out: Path) -> dict[str, Any]:
    """Write the page of several finished runs to `out` and return a document that says what is in it.

    Raises:
        ArtifactError: A run is not finished, or something else lies at `out`.
    """
    _check_ours(out)
    runs = sorted((_read_run(folder, out=out) for folder in folders), key=lambda run: run.made)
    try:
        write_text(out, render_runs(runs))
    except OSError as exc:
        raise ArtifactError(f"cannot write `{out}`: {exc.strerror}", path=str(out)) from exc
    return {
        "schema": SCHEMA,
        "path": str(out.resolve()),
        "runs": [
            {
                "run": run.name,
                "path": run.summary["path"],
                "made": run.made.isoformat(),
                "verdict": judge(run.summary).headline.text,
                "budget_met": (run.summary.get("budget") or {}).get("met"),
            }
            for run in runs
        ],
    }


def render_runs(runs: Sequence[ReportedRun]) -> str:
    """Return the page.

    Args:
        runs: Oldest first.
    """
    verdicts = [judge(run.summary) for run in runs]
    rows, marks = [], []
    colours: dict[str, int] = {}
    for number, run in enumerate(runs, 1):
        for row in model_rows(run.summary):
            rows.append(row | {"name": f"{row['name']}, {run.name}"})
            marks.append((str(number), colours.setdefault(row["name"], len(colours)) % SERIES))
    parts = {key for row in (*(run.summary for run in runs), *rows) for key, value in row.items() if value}
    newest = runs[-_DRAWN:]
    definitions = read_definitions(parts | ({CURVES} if any(run.curves for run in newest) else set()))
    return render_page(
        "runs_report.html.j2",
        runs=list(reversed(list(zip(itertools.count(1), runs, verdicts)))),
        verdict=_verdict(verdicts, files=[row for row in rows if "format" in row]),
        tradeoff=build_tradeoff(rows, labels=[label for label, _ in marks], series=[one for _, one in marks]),
        colours=colours,
        models=models_table(rows, definitions, marks=tuple(marks)),
        costs=costs_table([(run.name, run.summary) for run in runs], definitions, title="What each run cost"),
        cost_plots=draw_costs([(run.made, run.summary) for run in runs]),
        curves=draw_together({run.name: run.curves for run in newest}),
        answers=list(itertools.islice(_answers(newest), SHOWN_ANSWERS)),
        settings=_settings(runs),
        definitions=definitions,
    )


def _check_ours(out: Path) -> None:
    """Refuse to replace a file that is no report."""
    if out.exists() and f'content="{GENERATOR}"'.encode() not in out.read_bytes()[:4096]:
        raise ArtifactError(
            f"`{out}` is there already and is no report", hint="name another file with `--out`", path=str(out)
        )


def _read_run(folder: Path, *, out: Path) -> ReportedRun:
    page = folder / REPORT_NAME
    made = max((folder / name / MANIFEST_NAME).stat().st_mtime for name in STAGES)
    summary = read_summary(folder)
    return ReportedRun(
        name=summary["run"],
        link=Path(os.path.relpath(page, out.parent)).as_posix() if page.is_file() else "",
        made=datetime.datetime.fromtimestamp(made, tz=datetime.UTC),
        summary=summary,
        curves=read_lines(folder / CURVES),
        answers=read_lines(folder / "evaluate" / "answers.jsonl"),
    )


def _verdict(verdicts: Sequence[Verdict], *, files: Sequence[Mapping[str, Any]]) -> Verdict:
    """Return one verdict on all: how many meet their budgets, and which file of all is the best at what."""
    asked = [verdict.headline.judgement for verdict in verdicts if verdict.budget]
    good, bad = asked.count(Judgement.GOOD), asked.count(Judgement.BAD)
    if not asked:
        headline = Statement(judgement=Judgement.OPEN, text=f"{len(verdicts)} runs, none with a budget")
    else:
        judgement = Judgement.BAD if bad else Judgement.GOOD if good == len(asked) else Judgement.OPEN
        headline = Statement(judgement=judgement, text=f"{good} of {len(asked)} runs with a budget meet it")
    return Verdict(headline=headline, statements=tuple(best_of(files)), budget=())


def _answers(runs: Sequence[ReportedRun]) -> Iterator[dict[str, Any]]:
    """Yield prompts that several runs have answered, with the teacher's answer and each run's student's."""
    by_prompt: dict[str, dict[str, str]] = {}
    for run in runs:
        for row in run.answers:
            answers = row["answers"]
            if TEACHER in answers and _STUDENT in answers:
                found = by_prompt.setdefault(row["prompt"], {TEACHER: answers[TEACHER]})
                found[run.name] = answers[_STUDENT]
    for prompt, answers in by_prompt.items():
        if len(answers) > 2:  # the teacher's and two runs'
            yield {"prompt": prompt, "answers": beside_teacher(answers)}


def _settings(runs: Sequence[ReportedRun]) -> PageTable | None:
    """Return what the recipes do not agree on: each value, and which runs have it."""
    recipes = [dict(flatten(run.summary["recipe"])) for run in runs]
    rows = []
    for key in dict.fromkeys(key for recipe in recipes for key in recipe):
        holders: dict[str, list[int]] = {}
        for number, recipe in enumerate(recipes, 1):
            holders.setdefault(_short(recipe.get(key)), []).append(number)
        if len(holders) > 1:
            rows.append((key, "; ".join(f"{value}: run {_spans(who)}" for value, who in holders.items())))
    return (
        text_table("Settings that differ", ("setting", "value, and the runs that have it"), rows)
        if rows
        else None
    )


def _short(value: object) -> str:
    text = "absent" if value is None else str(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…"


def _spans(numbers: Sequence[int]) -> str:
    """Return numbers as people write them: `1 to 4, 7`."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(first) if first == last else f"{first} to {last}" for first, last in spans)
