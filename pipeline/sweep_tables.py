"""Tables of a sweep: the plan before it begins, and its runs side by side when it is over."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .columns import COLUMNS, show
from .plan import MAKE, SHARE, THERE, counts_text
from .sweep_document import STUDENT
from .table import build_table, escape

if TYPE_CHECKING:
    from rich.table import Table

_CELLS = {MAKE: "[bold]make[/]", SHARE: "share", THERE: "there"}


def plan_table(plan: Mapping[str, Any]) -> Table:
    """Return one line for each run of a plan: its values, and for each stage whether it has to be made."""
    stages = [*plan["runs"][0]["stages"]]
    title = f"{plan['name']}: {len(plan['runs'])} runs, {counts_text(plan)}"
    table = build_table(title, "run", [*plan["keys"], *stages, "memory\nGiB"])
    for row in plan["runs"]:
        memory = f"{row['memory_bytes'] / 2**30:.1f}" if row["memory_bytes"] else "–"
        table.add_row(
            row["run"],
            *_choices(row, plan["keys"]),
            *(_CELLS[row["stages"][stage]] for stage in stages),
            memory,
        )
    return table


def sweep_table(document: Mapping[str, Any]) -> Table:
    """Return one line for each run of a sweep: its values, its student's numbers, the one sorted by, how it ended."""
    wanted = [(STUDENT, column) for column in COLUMNS if column.section in ("", "quality")]
    model, _, metric = (document["sort"] or "").rpartition(".")
    wanted += [
        (model, column) for column in COLUMNS if column.key == metric and (model, column) not in wanted
    ]
    used = [
        (model, column)
        for model, column in wanted
        if any(column.key in row["models"].get(model, {}) for row in document["runs"])
    ]
    heads = ["\n".join(filter(None, [*_name(model), column.title, column.unit])) for model, column in used]
    table = build_table(f"{document['name']}: sweep", "run", [*document["keys"], *heads, "seconds", ""])
    table.columns[-1].justify = "left"
    for row in document["runs"]:
        seconds = "–" if row["seconds"] is None else f"{row['seconds']:.1f}"
        numbers = [show(row["models"].get(model, {}).get(column.key), column) for model, column in used]
        table.add_row(row["run"], *_choices(row, document["keys"]), *numbers, seconds, _ending(row))
    return table


def _name(model: str) -> list[str]:
    return [] if model == STUDENT else [model]


def _choices(row: Mapping[str, Any], keys: Sequence[str]) -> list[str]:
    return [escape(_text(row["choices"][key])) if key in row["choices"] else "" for key in keys]


def _text(value: object) -> str:
    """Return a value as a cell shows it: a section by its kind and what else it says."""
    if isinstance(value, Mapping):
        rest = {key: item for key, item in value.items() if key != "kind" and not isinstance(item, list)}
        return " ".join(
            [str(value.get("kind", "")), *(f"{key}={_text(item)}" for key, item in rest.items())]
        ).strip()
    return value if isinstance(value, str) else json.dumps(value)


def _ending(row: Mapping[str, Any]) -> str:
    if row["exit_code"]:
        return f"[bold red]exit {row['exit_code']}[/]: {escape(row['error'])}"
    return "" if row["state"] == "finished" else escape(row["state"])
