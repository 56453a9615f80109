"""report.html, MODEL_CARD.md and summary.json: a finished run for a reader, for who gets its files, for a program.

The page (`page.py`) is one file: the verdict, then the trade of size, quality and speed, then everything behind it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ammd.artifact import write_json
from ammd.durable import write_text
from ammd.errors import ArtifactError

from .answer_diff import beside_teacher
from .bench_cells import cells_of_run
from .bench_plots import draw_bench
from .bench_tables import UNKNOWN, bench_blocks, notes_of
from .cache import Done
from .definitions import CURVES, Definitions, read_definitions
from .file_notes import file_notes
from .match_note import match_note
from .model_card import read_student_config, render_card
from .page import SERIES, Heading, PageTable, render_page, text_table
from .page_tables import costs_table, models_table, task_tables
from .plots import draw_curves
from .profile_tables import profile_tables
from .recipe import Recipe
from .run_folder import CARD_NAME, RECIPE_NAME, REPORT_NAME, SUMMARY_NAME
from .run_log import StageMemory, stage_memory
from .run_plots import draw_memory
from .runs import read_finished, read_summary
from .summary import build_summary
from .table import model_rows
from .tradeoff import build_tradeoff
from .verdict import judge

log = logging.getLogger("ammd.pipeline")
SHOWN_ANSWERS = 12


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
    memory: Sequence[StageMemory] = (),
) -> str:
    """Return the page.

    Args:
        summary: The run's document.
        curves: One row for each logged training step.
        answers: `prompt` and `answers` by model name, one for each held-out prompt.
        recipe_text: The resolved recipe as TOML.
        memory: Of the stages that the run's log has seen.
    """
    definitions = read_definitions(_parts(summary, has_curves=bool(curves)))
    rows = model_rows(summary)
    bench = {row["name"]: row.get("bench") for row in rows}
    marks = tuple((str(place + 1), place % SERIES) for place in range(len(rows)))
    return render_page(
        "report.html.j2",
        summary=summary,
        match_note=match_note(summary),
        verdict=judge(summary),
        tradeoff=build_tradeoff(rows, labels=[label for label, _ in marks], series=[one for _, one in marks]),
        models=models_table(rows, definitions, marks=marks),
        tasks=list(task_tables(summary, definitions)),
        curves=draw_curves(curves),
        bench_tables=[*_bench_tables(bench, definitions), *_cells_table(summary)],
        bench_notes=notes_of(bench),
        bench_plots=draw_bench(bench),
        profiles=[
            _profile(title, found) for one in summary["profiles"] for title, found in profile_tables(one)
        ],
        proofs=_proofs_table(summary["artifacts"], definitions),
        answers=[_answers(row) for row in answers[:SHOWN_ANSWERS]],
        costs=costs_table([(summary["run"], summary)], definitions, title="The whole run"),
        stages=_stages_table(summary, definitions),
        memory=draw_memory(memory),
        notes={row["name"]: file_notes(row) for row in summary["artifacts"]},
        recipe_text=recipe_text,
        definitions=definitions,
    )


def _parts(summary: Mapping[str, Any], *, has_curves: bool) -> set[str]:
    """Return the parts of a summary that have something in them, as docs/fields.md names them."""
    rows = [summary, *model_rows(summary)]
    found = {key for row in rows for key, value in row.items() if value}
    return found | ({CURVES} if has_curves else set())


def _bench_tables(
    bench: Mapping[str, Mapping[str, Any] | None], definitions: Definitions
) -> Iterator[PageTable]:
    for block in bench_blocks(bench):
        yield PageTable(
            title=block.title[:1].upper() + block.title[1:],
            headings=(
                Heading(title="model"),
                *(
                    Heading(title=word, unit=unit, meaning=definitions.link("bench", key))
                    for (word, unit), key in zip(block.headings, block.keys, strict=True)
                ),
            ),
            rows=block.rows,
        )


def _cells_table(summary: Mapping[str, Any]) -> Iterator[PageTable]:
    headings = (
        "model",
        "threads",
        "processes",
        "measured again",
        "passes",
        "warm-up passes",
        "measurement",
        "because",
    )
    rows = [
        (
            cell.model,
            *map(
                str,
                (cell.threads, cell.processes, cell.replaced, cell.passes, cell.warmup_passes, cell.state),
            ),
            cell.why or UNKNOWN,
        )
        for cell in cells_of_run(summary)
    ]
    if rows:
        yield text_table("How good the speeds are", headings, rows)


def _profile(title: str, rows: Sequence[Mapping[str, str]]) -> PageTable:
    return text_table(title, list(rows[0]), [list(row.values()) for row in rows])


def _proofs_table(rows: Sequence[Mapping[str, Any]], definitions: Definitions) -> PageTable | None:
    """Return the plain facts of each file's proof: a column a file."""
    proven = [(row["name"], row["parity"]) for row in rows if row.get("parity")]
    keys = dict.fromkeys(
        key
        for _, facts in proven
        for key, value in facts.items()
        # What stands with the files, or has no short form.
        if not isinstance(value, dict | list) and key not in ("sha256", "bytes")
    )
    if not keys:
        return None
    return PageTable(
        title="Proofs of the files",
        headings=(Heading(title="of the file"), *(Heading(title=name) for name, _ in proven)),
        rows=tuple((key.replace("_", " "), *(_plain(facts.get(key)) for _, facts in proven)) for key in keys),
        row_meanings=tuple(definitions.link("parity", key) for key in keys),
        is_text=True,
    )


def _stages_table(summary: Mapping[str, Any], definitions: Definitions) -> PageTable:
    rows = [(row["stage"], row) for row in summary["stages"]] + [("all", summary)]
    return PageTable(
        title="Stages",
        headings=(
            Heading(title="stage"),
            Heading(title="time", unit="s", meaning=definitions.link("", "seconds")),
            Heading(title="peak RSS", unit="MiB", meaning=definitions.link("", "peak_rss_bytes")),
        ),
        rows=tuple(
            (name, f"{row['seconds']:.1f}", f"{row['peak_rss_bytes'] / 2**20:,.0f}") for name, row in rows
        ),
    )


def _answers(row: Mapping[str, Any]) -> dict[str, Any]:
    return {"prompt": row["prompt"], "answers": beside_teacher(row["answers"])}


def _write(summary: dict[str, Any], folder: Path, done: Mapping[str, Done]) -> None:
    page = render_report(
        summary,
        curves=read_lines(done["distill"].folder / "curves.jsonl"),
        answers=read_lines(done["evaluate"].folder / "answers.jsonl"),
        recipe_text=(folder / RECIPE_NAME).read_text(encoding="utf-8"),
        memory=stage_memory(folder),
    )
    card = render_card(summary, student_config=read_student_config(done["distill"].folder / "student"))
    for name, text in ((REPORT_NAME, page), (CARD_NAME, card)):
        write_text(folder / name, text)
    write_json(folder / SUMMARY_NAME, summary)
    log.info("report: `%s`, model card: `%s`", folder / REPORT_NAME, folder / CARD_NAME)


def _stored_verdict(folder: Path) -> Any:
    try:
        return read_summary(folder).get("budget")
    except ArtifactError:
        return "unreadable"


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "–" if value is None else str(value)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSONL file of a finished stage."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
