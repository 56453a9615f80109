"""A comparison on the screen: all numbers, what changed by how much, who wins, answers side by side, settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .columns import COLUMNS, Better, Column, show
from .compare import Comparison
from .regression import Change, show_change, show_interval
from .table import build_table, escape, heading, styled_verdict

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table


def compare_tables(comparison: Comparison) -> list[RenderableType]:
    """Return what `ammd compare` prints."""
    tables: list[RenderableType] = [_numbers(comparison)] if comparison.rows else []
    tables += [_changes(comparison), _wins(comparison)]
    if comparison.speed_refusal:
        tables.append(f"speed and memory are not compared: {escape(comparison.speed_refusal)}")
    tables += [_sample(sample) for sample in comparison.samples]
    if comparison.settings:
        tables.append(_settings(comparison))
    return tables


def _numbers(comparison: Comparison) -> Table:
    """Return both sides' numbers for each model, `first → second`, the better one of the two marked."""
    numbers = {(row["model"], row["metric"]): row for row in comparison.rows}
    columns = [column for column in COLUMNS if column.key in {metric for _, metric in numbers}]
    title = f"{comparison.first} → {comparison.second}"
    table = build_table(title, "model", [heading(column) for column in columns])
    for model in dict.fromkeys(model for model, _ in numbers):
        table.add_row(model, *(_both(numbers.get((model, column.key), {}), column) for column in columns))
    return table


def _changes(comparison: Comparison) -> Table:
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
    for change in comparison.changes:
        has_moved = change.low is not None and change.high is not None and change.low * change.high > 0
        if change.verdict is None and not has_moved:
            continue
        table.add_row(
            change.model,
            _what(change),
            f"{change.first:.5g}",
            f"{change.second:.5g}",
            f"×{show_change(change)}" if change.is_ratio else show_change(change),
            show_interval(change),
            str(change.prompts or "–"),
            change.limit or "–",
            styled_verdict(change.verdict.value if change.verdict else None),
        )
    return table


def _what(change: Change) -> str:
    threads = "" if change.threads is None else f", {change.threads} threads"
    return escape(f"{change.metric}{threads}" + (f", {change.slice}" if change.slice else ""))


def _wins(comparison: Comparison) -> Table:
    table = build_table(
        f"prompt by prompt, {comparison.second} against {comparison.first}",
        "model",
        ["by", "wins", "ties", "losses"],
    )
    for row in comparison.wins:
        table.add_row(row["model"], row["by"], *(str(row[key]) for key in ("wins", "ties", "losses")))
    return table


def _sample(sample: Mapping[str, Any]) -> Table:
    """Return one prompt with the teacher's and both answers, each in a column of its own."""
    table = build_table(
        f"{escape(sample['model'])}: {escape(sample['prompt'])}", "teacher", ["first", "second"]
    )
    for column in table.columns:
        column.justify, column.no_wrap, column.ratio = "left", False, 1
    table.add_row(*(escape(sample[key] or "–") for key in ("teacher_text", "first", "second")))
    return table


def _settings(comparison: Comparison) -> Table:
    table = build_table("settings that differ", "key", ["first", "second"])
    for row in comparison.settings:
        table.add_row(row["key"], *(escape(str(row[side])) for side in ("first", "second")))
    return table


def _both(row: Mapping[str, Any], column: Column) -> str:
    old, new = row.get("first"), row.get("second")
    texts = [show(old, column), show(new, column)]
    if old is not None and new is not None and texts[0] != texts[1]:
        first_wins = (old < new) == (column.better is Better.LOWER)
        winner = 0 if first_wins else 1
        texts[winner] = f"[bold]{texts[winner]}[/bold]"
    return " → ".join(texts)
