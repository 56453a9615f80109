"""report.html, MODEL_CARD.md and summary.json: a finished run for a reader, for who gets its files, for a program.

The page is one file without scripts or outside requests. All text from models and recipes is escaped by the
template; only the drawings made here go in as markup.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from ammd.artifact import write_json
from ammd.errors import ArtifactError

from .bench_cells import cells_of_run
from .bench_plots import draw_bench
from .bench_tables import bench_blocks, notes_of
from .cache import Done
from .columns import show, used_columns, value_of
from .file_notes import file_notes
from .model_card import read_context_tokens, render_card
from .plots import draw_curves, draw_trade
from .profile_tables import profile_tables
from .recipe import Recipe
from .run_folder import CARD_NAME, RECIPE_NAME, REPORT_NAME, SUMMARY_NAME
from .runs import read_finished, read_summary
from .summary import build_summary
from .table import model_rows

log = logging.getLogger("ammd.pipeline")
_SHOWN_ANSWERS = 12


def publish_report(recipe: Recipe, folder: Path, done: Mapping[str, Done]) -> dict[str, Any]:
    """Write summary, report and card of a run whose stages are all done; keep them if they would be the same.

    Returns:
        The summary.
    """
    summary = build_summary(recipe, folder, done)
    there = all((folder / name).is_file() for name in (SUMMARY_NAME, REPORT_NAME, CARD_NAME))
    made = not all(item.cached for item in done.values())
    if not there or made or _stored_verdict(folder) != summary["budget"]:
        _write(summary, folder, done)
    return summary


def rebuild_report(folder: Path) -> dict[str, Any]:
    """Write summary, report and card of a finished run anew from its stages and return the summary.

    Raises:
        ArtifactError: A stage is missing or altered.
    """
    recipe, done = read_finished(folder)
    summary = build_summary(recipe, folder, done)
    _write(summary, folder, done)
    return summary


def render_report(
    summary: Mapping[str, Any],
    *,
    curves: list[dict[str, Any]],
    answers: list[dict[str, Any]],
    recipe_text: str,
) -> str:
    """Return the page.

    Args:
        summary: The run's document.
        curves: One row for each logged training step.
        answers: `prompt` and `answers` by model name, one for each held-out prompt.
        recipe_text: The resolved recipe as TOML.
    """
    import jinja2
    from markupsafe import Markup

    source = files("ammd.pipeline").joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    rows = model_rows(summary)
    columns = used_columns(rows)
    bench = {row["name"]: row.get("bench") for row in rows}
    trade = draw_trade(rows)
    plots = [*([trade] if trade else []), *draw_curves(curves)]
    return environment.from_string(source).render(
        summary=summary,
        columns=columns,
        table=[(row["name"], [show(value_of(row, column), column) for column in columns]) for row in rows],
        cells=cells_of_run(summary),
        bench_blocks=bench_blocks(bench),
        bench_notes=notes_of(bench),
        bench_plots=[(plot.title, plot.caption, Markup(plot.svg)) for plot in draw_bench(bench)],
        plots=[(plot.title, plot.caption, Markup(plot.svg)) for plot in plots],
        parity=_facts(summary["artifacts"], "parity"),
        profiles=[table for document in summary["profiles"] for table in profile_tables(document)],
        notes={row["name"]: file_notes(row) for row in summary["artifacts"]},
        answers=answers[:_SHOWN_ANSWERS],
        recipe_text=recipe_text,
    )


def _write(summary: dict[str, Any], folder: Path, done: Mapping[str, Done]) -> None:
    page = render_report(
        summary,
        curves=_read_lines(done["distill"].folder / "curves.jsonl"),
        answers=_read_lines(done["evaluate"].folder / "answers.jsonl"),
        recipe_text=(folder / RECIPE_NAME).read_text(encoding="utf-8"),
    )
    context_tokens = read_context_tokens(done["distill"].folder / "student")
    card = render_card(summary, model_context_tokens=context_tokens)
    for name, text in ((REPORT_NAME, page), (CARD_NAME, card)):
        temporary = folder / f"{name}.tmp"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(folder / name)
    write_json(folder / SUMMARY_NAME, summary)
    log.info("report: `%s`, model card: `%s`", folder / REPORT_NAME, folder / CARD_NAME)


def _stored_verdict(folder: Path) -> Any:
    try:
        return read_summary(folder).get("budget")
    except ArtifactError:
        return "unreadable"


def _facts(rows: list[dict[str, Any]], section: str) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Return the plain facts of `section` as headings and one line for each row that has any."""
    having = [(row["name"], row[section]) for row in rows if row.get(section)]
    keys = list(
        dict.fromkeys(
            key
            for _, facts in having
            for key, value in facts.items()
            if not isinstance(value, dict | list) and key != "sha256"  # stands with the files
        )
    )
    return keys, [(name, [_plain(facts.get(key)) for key in keys]) for name, facts in having]


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "–" if value is None else str(value)


def _read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
