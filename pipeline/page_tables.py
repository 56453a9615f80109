"""Tables of the report; those of models and costs are in that of several runs, too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .columns import Better, show, used_columns, value_of
from .cost_columns import COSTS, costs_of, show_cost
from .definitions import Definitions
from .page import Heading, PageTable
from .table import model_rows
from .task_cells import task_cells


def models_table(
    rows: Sequence[Mapping[str, Any]], definitions: Definitions, *, marks: tuple[tuple[str, int], ...]
) -> PageTable:
    """Return one line for each model, one column for each number that any of them has.

    Args:
        rows: Models and files of a summary.
        definitions: What the headings point to.
        marks: Of each row, as the plot has it.
    """
    columns = used_columns(rows)
    return PageTable(
        title="Models and files",
        headings=(
            Heading(title="model"),
            *(
                Heading(
                    title=column.title,
                    unit=f"{column.unit} {'↓' if column.better is Better.LOWER else '↑'}",
                    meaning=definitions.link(column.section, column.key),
                )
                for column in columns
            ),
        ),
        rows=tuple(
            (row["name"], *(show(value_of(row, column), column) for column in columns)) for row in rows
        ),
        marks=marks,
    )


def task_tables(summary: Mapping[str, Any], definitions: Definitions) -> Iterator[PageTable]:
    """Give a table for each language task, a line for each model."""
    for name, task in summary.get("tasks", {}).items():
        cells = task_cells(name, task, model_rows(summary))
        columns = (
            Heading(
                title=metric.title,
                unit="%" if metric.percent else "",
                meaning=definitions.link("tasks", metric.key),
            )
            for metric in cells.metrics
        )
        yield PageTable(title=cells.title, headings=(Heading(title="model"), *columns), rows=cells.rows)


def costs_table(
    runs: Sequence[tuple[str, Mapping[str, Any]]], definitions: Definitions, *, title: str
) -> PageTable:
    """Return one line for each run, one column for each kind of cost that is known of any.

    Args:
        runs: What a run is called here, and its summary.
        definitions: What the headings point to.
        title: Of the table.
    """
    known = [(name, costs_of(summary)) for name, summary in runs]
    used = [cost for cost in COSTS if any(cost.key in costs for _, costs in known)]
    return PageTable(
        title=title,
        headings=(
            Heading(title="run"),
            *(
                Heading(
                    title=cost.title,
                    unit=cost.unit,
                    meaning=definitions.link("costs", cost.key) or definitions.link("", cost.key),
                )
                for cost in used
            ),
        ),
        rows=tuple((name, *(show_cost(costs.get(cost.key), cost) for cost in used)) for name, costs in known),
    )
