"""What `ammd bench` prints: its numbers in a form that others read, and how they compare with a baseline."""

from __future__ import annotations

import sys

import click

from ammd.runtime.gate import Gate
from ammd.runtime.llama_bench_rows import bench_rows
from ammd.runtime.row_formats import FORMATS

from .bench_cells import FAILED
from .bench_files import Judged
from .bench_tables import bench_tables
from .cli_options import emit
from .table import cells_table, gate_table


def report(judged: Judged, *, form: str) -> None:
    """Print a benchmark and, with a baseline, the comparison; what was measured is printed whatever came of that.

    Raises:
        AmmdError: As `Judged.check`.
    """
    if form in FORMATS:
        click.echo(FORMATS[form](bench_rows(judged.current, proofs=judged.proofs)), nl=False)
    else:
        cells = judged.cells
        where = judged.document["device"]["name"] if "device" in judged.document else ""
        tables = bench_tables(judged.document["bench"], where=where)
        tables += [cells_table(cells)] if cells else []
        emit(judged.document, lambda: tables, as_json=form == "json")
    if judged.gate and not any(cell.state == FAILED for cell in judged.cells):
        _print_gate(judged.gate, to_stderr=form != "table")
    judged.check()


def _print_gate(gate: Gate, *, to_stderr: bool) -> None:
    """Print the verdicts; to standard error where standard output is another program's."""
    from rich.console import Console

    stream = sys.stderr if to_stderr else sys.stdout
    Console(file=stream, width=None if stream.isatty() else 200).print(gate_table(gate.as_json()))
    for text in gate.noisy:
        click.echo(text, err=to_stderr)
    for where, names in (("baseline", gate.only_in_baseline), ("benchmark", gate.only_in_current)):
        if names:
            click.echo(f"only in the {where}: {'; '.join(names)}", err=to_stderr)
