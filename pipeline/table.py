"""Tables on the screen: models of a run, its stages, and the list of runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .bench_cells import FAILED, BenchCell
from .budget import missed_cells, show_value, title_of
from .columns import Column, show, used_columns, value_of
from .task_cells import task_cells

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

# Linux's names of the instructions that quantized models gain most from, as Arm and Intel call them.
INSTRUCTIONS = {
    "asimddp": "dotprod",
    "i8mm": "i8mm",
    "asimdhp": "fp16",
    "sve": "sve",
    "sve2": "sve2",
    "sme": "sme",
    "avx2": "avx2",
    "avx512f": "avx512",
    "avx512_vnni": "vnni",
    "amx_int8": "amx",
}


def model_rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return checkpoints, then exported files: the rows of every table of models."""
    return [*summary["models"], *summary["artifacts"]]


def run_tables(summary: Mapping[str, Any]) -> list[RenderableType]:
    """Return the tables that end `ammd run`."""
    tables: list[RenderableType] = []
    if rows := model_rows(summary):
        title = f"{summary['run']}: models and files"
        tables.append(models_table(rows, title=title, missed=missed_cells(summary["budget"])))
    tables += task_tables(summary.get("tasks", {}), rows)
    tables.append(stages_table(summary))
    if summary["budget"]:
        tables.append(budget_table(summary["budget"]))
    return tables


def models_table(
    rows: Sequence[Mapping[str, Any]], *, title: str, missed: Collection[tuple[str, str]] = ()
) -> Table:
    """Return one line for each model, one column for each number that any of them has; `missed` ones stand out."""
    columns = used_columns(rows)
    table = build_table(title, "model", [heading(column) for column in columns])
    for row in rows:
        texts = [show(value_of(row, column), column) for column in columns]
        marked = [
            f"[bold red]{text} ✗[/]" if (row["name"], column.key) in missed else text
            for text, column in zip(texts, columns, strict=True)
        ]
        table.add_row(row["name"], *marked)
    return table


def budget_table(verdict: Mapping[str, Any]) -> Table:
    """Return one line for each limit of each file; what is missed stands out, and by how much."""
    state = {True: "met", False: "missed", None: "nothing to judge yet"}[verdict["met"]]
    table = build_table(f"budget: {state}", "file", ["what", "limit", "measured", "", "by", "because"])
    for column in (table.columns[1], table.columns[-1]):
        column.justify = "left"
    for row in verdict["rows"]:
        table.add_row(
            row["artifact"],
            title_of(row["metric"]),
            show_value(row, "limit"),
            show_value(row, "value"),
            "[green]met[/]" if row["met"] else "[bold red]missed[/]",
            "" if row["over_by"] is None else show_value(row, "over_by"),
            escape(row["why"]),
        )
    return table


def task_tables(
    tasks: Mapping[str, Mapping[str, Any]], models: Sequence[Mapping[str, Any]]
) -> Iterator[Table]:
    """Give a table for each task that a model has answered; the arguments are those of `task_cells`."""
    for name, task in tasks.items():
        cells_of = task_cells(name, task, models)
        if cells_of.rows:
            headings = [f"{one.title}\n%" if one.percent else one.title for one in cells_of.metrics]
            table = build_table(cells_of.title, "model", headings)
            for model, *cells in cells_of.rows:
                table.add_row(escape(model), *cells)
            yield table


def stages_table(summary: Mapping[str, Any]) -> Table:
    """Return what each stage cost, and which were there already."""
    table = build_table("stages", "stage", ["seconds", "peak RSS\nMiB", ""])
    for row in summary["stages"]:
        cached = "there already" if row["cached"] else ""
        table.add_row(row["stage"], f"{row['seconds']:.1f}", f"{row['peak_rss_bytes'] / 2**20:,.0f}", cached)
    if summary["stages"]:
        table.add_section()
        table.add_row("all", f"{summary['seconds']:.1f}", f"{summary['peak_rss_bytes'] / 2**20:,.0f}", "")
    return table


def reported_table(document: Mapping[str, Any]) -> Table:
    """Return the verdict on each run of a report."""
    table = build_table(f"written to {document['path']}", "run", ["made, UTC", "verdict"])
    table.columns[2].justify = "left"
    for row in document["runs"]:
        table.add_row(escape(row["run"]), row["made"][:16].replace("T", " "), row["verdict"])
    return table


def doctor_table(document: Mapping[str, Any]) -> Table:
    """Return one line for each finding; what is missing stands out."""
    table = build_table("doctor", "what", ["state", "found", "advice"])
    for column in table.columns[1:]:
        column.justify = "left"
    styles = {"ok": "green", "note": "yellow", "missing": "bold red"}
    for row in document["findings"]:
        state = f"[{styles[row['state']]}]{row['state']}[/]"
        table.add_row(row["name"], state, escape(row["found"]), escape(row["advice"]))
    return table


def devices_table(document: Mapping[str, Any]) -> Table:
    """Return one line for each device, or why it cannot be used."""
    table = build_table(
        "devices", "device", ["system", "chip", "cores", "instructions", "RAM\nGiB", "battery"]
    )
    for column in table.columns[1:5]:
        column.justify = "left"
    for row in document["devices"]:
        if "error" in row:
            table.add_row(escape(row["name"]), f"[bold red]{escape(row['error'])}[/]")
            continue
        state, ram = row["state"], row["ram_bytes"]
        battery = [
            f"{value:.0f} {unit}"
            for value, unit in ((state["battery_percent"], "%"), (state["battery_celsius"], "°C"))
            if value is not None
        ]
        table.add_row(
            escape(row["name"]),
            escape(row["system"] or row["kernel"]),
            escape(row["soc"] or row["model"] or row["machine"]),
            cores_text(row["cores"]),
            ", ".join(name for flag, name in INSTRUCTIONS.items() if flag in row["features"]),
            f"{ram / 2**30:.1f}" if ram else "–",
            ", ".join(battery) or "–",
        )
    return table


def cores_text(cores: Sequence[Mapping[str, Any]]) -> str:
    """Return cores by frequency, the fastest first: `1×2.91 + 4×2.37 GHz`; their number where that is not known."""
    known = Counter(core["max_hz"] for core in cores)
    if None in known:
        return str(len(cores))
    return " + ".join(f"{known[hz]}×{hz / 1e9:.2f}" for hz in sorted(known, reverse=True)) + " GHz"


def files_table(document: Mapping[str, Any]) -> Table:
    """Return what an export wrote."""
    headings = ["MiB", "bits per weight", "stored otherwise", "seconds", "peak MiB"]
    table = build_table(f"written to {document['path']}", "file", headings)
    for row in document["artifacts"]:
        table.add_row(
            row["name"],
            f"{row['bytes'] / 2**20:,.1f}",
            f"{row['bits_per_weight']:.2f}",
            str(len(row["fallbacks"]) or "–"),
            f"{row['seconds']:.1f}",
            f"{row['peak_rss_bytes'] / 2**20:,.0f}",
        )
    return table


def bundle_table(document: Mapping[str, Any]) -> Table:
    """Return what a bundle holds."""
    table = build_table(f"written to {document['path']}", "file", ["bytes", "sha256"])
    for row in document["files"]:
        table.add_row(escape(row["path"]), f"{row['bytes']:,}", row["sha256"])
    return table


def facts_table(results: Mapping[str, Mapping[str, Any]], *, title: str) -> Table:
    """Return every plain number and word of some models' results, one line each."""
    table = build_table(title, "model", ["what", "value"])
    table.columns[1].justify = "left"
    for name, facts in results.items():
        label = name
        for key, value in facts.items():
            if not isinstance(value, dict | list):
                table.add_row(escape(label), key, _plain(value))
                label = ""
    return table


def cells_table(cells: Sequence[BenchCell]) -> Table:
    """Return how good each measurement is, and why it is not better; what is not good stands out."""
    headings = ["threads", "processes", "passes", "warm-up", "measurement", "because"]
    table = build_table("how good these numbers are", "model", headings)
    table.columns[-1].justify = "left"
    for column in table.columns:
        column.vertical = "top"  # reasons may take several lines
    styles = {"good": "green", "noisy": "yellow", "invalid": "bold red", FAILED: "bold red"}
    for cell in cells:
        again = f" + {cell.replaced}" if cell.replaced else ""
        table.add_row(
            escape(cell.model),
            str(cell.threads),
            f"{cell.processes}{again}",
            str(cell.passes),
            str(cell.warmup_passes),
            f"[{styles[cell.state]}]{cell.state}[/]",
            escape(cell.why),
        )
    return table


def gate_table(gate: Mapping[str, Any]) -> Table:
    """Return one line for each number that was held against a baseline; what has regressed stands out."""
    title = f"against the baseline, {gate['max_regression']:.1%} worse is allowed"
    headings = ["threads", "what", "baseline", "now", "ratio", "95 % interval", "verdict"]
    table = build_table(title, "model", headings)
    for row in gate["rows"]:
        interval = "–" if row["low"] is None else f"{row['low']:.3f} to {row['high']:.3f}"
        table.add_row(
            escape(row["model"]),
            str(row["threads"]),
            row["metric"],
            _plain(row["baseline"]),
            _plain(row["current"]),
            f"{row['ratio']:.3f}",
            interval,
            styled_verdict(row["verdict"]),
        )
    return table


def styled_verdict(verdict: str | None) -> str:
    """Return a verdict in its colour; nothing where there is none."""
    styles = {"fine": "green", "undecided": "yellow", "regression": "bold red"}
    return f"[{styles[verdict]}]{verdict}[/]" if verdict else ""


def profile_table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Return rows of texts under `heads`; columns that hold a word are set as words."""
    table = build_table(title, heads[0], heads[1:])
    for index, column in enumerate(table.columns):
        column.vertical = "top"
        if any(any(map(str.isalpha, row[index])) for row in rows):
            column.justify = "left"
    for row in rows:
        table.add_row(*row)
    return table


def _plain(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else escape(str(value))


def heading(column: Column) -> str:
    """Return a column's title over its unit."""
    return f"{column.title}\n{column.unit}" if column.unit else column.title


def escape(text: str) -> str:
    """Return `text` so that rich shows its square brackets instead of obeying them."""
    from rich.markup import escape as escape_markup

    return escape_markup(text)


def build_table(title: str, first: str, headings: Sequence[str]) -> Table:
    """Return an empty table: the first column to the left, the others to the right."""
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(first, no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right", vertical="bottom")
    return table
