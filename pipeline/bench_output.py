"""What `ammd bench` does with its numbers: print them in a form that others read, and hold them against a baseline."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ammd.errors import NotComparableError
from ammd.machine import describe_machine
from ammd.runtime.bench_document import BenchDocument, parse_document, read_document
from ammd.runtime.gate import Gate, check, check_plan, compare
from ammd.runtime.llama_bench_rows import Proof, bench_rows
from ammd.runtime.row_formats import FORMATS
from ammd.runtime.settings import BenchSettings

from .bench_cells import cells_of, check_measured
from .bench_proofs import name_proofs
from .bench_tables import bench_tables
from .cli_options import emit
from .table import cells_table, gate_table

_SEED = 0  # of the gate's intervals


def load_baseline(path: Path, settings: BenchSettings) -> BenchDocument:
    """Return a baseline with which a benchmark under `settings` on this machine can be compared.

    Raises:
        ArtifactError: It is no document of `ammd bench --json`.
        NotComparableError: It was measured elsewhere or otherwise, or either side has too few processes.
    """
    baseline = read_document(path)
    check_plan(baseline, settings, machine=describe_machine())
    return baseline


def report(
    document: dict[str, Any],
    *,
    form: str,
    proofs: Mapping[str, Proof],
    baseline: BenchDocument | None,
    max_regression: float,
) -> None:
    """Print a benchmark and, with a baseline, the comparison; what was measured is printed whatever came of that.

    Raises:
        EngineError: A model could not be measured.
        NotComparableError: Engine or kind of file are not those of the baseline, or a row is invalid.
        BudgetExceededError: A number has regressed.
    """
    name_proofs(document["bench"].values(), proofs)
    current = parse_document(document, label="ammd bench")
    gate, refusal = _compared(baseline, current, max_regression=max_regression)
    if gate:
        document["gate"] = gate.as_json()
    cells = cells_of(document["bench"])
    if form in FORMATS:
        click.echo(FORMATS[form](bench_rows(current, proofs=proofs)), nl=False)
    else:
        tables = (*bench_tables(document["bench"]), *([cells_table(cells)] if cells else []))
        emit(document, lambda: tables, as_json=form == "json")
    if refusal:
        raise refusal
    check_measured(cells)
    if gate:
        _print_gate(gate, to_stderr=form != "table")
        check(gate)


def _compared(
    baseline: BenchDocument | None, current: BenchDocument, *, max_regression: float
) -> tuple[Gate | None, NotComparableError | None]:
    import numpy as np

    if baseline is None:
        return None, None
    try:
        generator = np.random.default_rng(_SEED)
        return compare(baseline, current, max_regression=max_regression, generator=generator), None
    except NotComparableError as exc:
        return None, exc


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
