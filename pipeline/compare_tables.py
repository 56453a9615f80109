"""A comparison on the screen: all numbers, what changed by how much, who wins, answers side by side, settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .columns import Better, Column, show, used_columns, value_of
from .compare import Comparison
from .regression import Change
from .table import build_table, escape, heading, styled_verdict

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


def compare_tables(comparison: Comparison) -> list[RenderableType]:
    """Return what `ammd compare` prints."""
    document = comparison.as_json()
    tables: list[RenderableType] = [_numbers(comparison), _changes(comparison.changes), _wins(document)]
    if comparison.speed_refusal:
        tables.append(f"speed and memory are not compared: {escape(comparison.speed_refusal)}")
    tables += [_sample(sample) for sample in document["samples"][: comparison.samples]]
    if document["settings"]:
        tables.append(_settings(document))
    return tables


def _numbers(comparison: Comparison) -> Table:
    """Return both sides' numbers for each pair, `first → second`, the better one of the two marked."""
    first, second = comparison.first, comparison.second
    sides = [(pair.label, (first.row(pair.first), second.row(pair.second))) for pair in comparison.pairs]
    columns = used_columns([row for _, rows in sides for row in rows])
    title = f"{first.label} → {second.label}"
    table = build_table(title, "model", [heading(column) for column in columns])
    for label, rows in sides:
        table.add_row(label, *(_both(rows, column) for column in columns))
    return table


def _changes(changes: Sequence[Change]) -> Table:
    """Return one line for each number that is judged or has certainly moved."""
    headings = [
        "what",
        "first",
        "second",
        "change",
        "95 % interval",
        "prompts",
        "worse is\nallowed by",
        "verdict",
    ]
    table = build_table("what changed", "model", headings)
    table.columns[1].justify = "left"
    for change in changes:
        has_moved = change.low is not None and change.high is not None and change.low * change.high > 0
        if change.verdict is None and not has_moved:
            continue
        form = "×{:.3f}" if change.is_ratio else "{:+.4g}"
        interval = "–" if change.low is None else f"{form.format(change.low)} to {form.format(change.high)}"
        table.add_row(
            change.model,
            change.metric if change.threads is None else f"{change.metric}, {change.threads} threads",
            f"{change.first:.5g}",
            f"{change.second:.5g}",
            form.format(change.change),
            interval,
            str(change.prompts or "–"),
            change.limit or "–",
            styled_verdict(change.verdict.value if change.verdict else None),
        )
    return table


def _wins(document: Mapping[str, Any]) -> Table:
    table = build_table(
        f"prompt by prompt, {document['second']} against {document['first']}",
        "model",
        ["by", "wins", "ties", "losses"],
    )
    for row in document["wins"]:
        table.add_row(row["model"], row["by"], *(str(row[key]) for key in ("wins", "ties", "losses")))
    return table


def _sample(sample: Mapping[str, Any]) -> Table:
    """Return one prompt with the teacher's and both answers, each in a column of its own."""
    table = build_table(
        f"{escape(sample['model'])}: {escape(sample['prompt'])}", "teacher", ["first", "second"]
    )
    for column in table.columns:
        column.justify, column.no_wrap, column.ratio = "left", False, 1
    table.add_row(*(escape(sample[key]) for key in ("teacher_text", "first", "second")))
    return table


def _settings(document: Mapping[str, Any]) -> Table:
    table = build_table("settings that differ", "key", ["first", "second"])
    for row in document["settings"]:
        table.add_row(row["key"], *(escape(str(row[side])) for side in ("first", "second")))
    return table


def _both(rows: Sequence[Mapping[str, Any]], column: Column) -> str:
    old, new = (value_of(row, column) for row in rows)
    texts = [show(old, column), show(new, column)]
    if old is not None and new is not None and texts[0] != texts[1]:
        first_wins = (old < new) == (column.better is Better.LOWER)
        winner = 0 if first_wins else 1
        texts[winner] = f"[bold]{texts[winner]}[/bold]"
    return " → ".join(texts)
