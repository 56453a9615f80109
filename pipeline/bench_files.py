"""A benchmark of files: measured here, with what is proven of them, held against a baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ammd.errors import NotComparableError
from ammd.machine import describe_machine
from ammd.runtime.bench_document import BenchDocument, parse_document, read_document
from ammd.runtime.gate import Gate, check, check_plan, compare
from ammd.runtime.llama_bench_rows import Proof
from ammd.runtime.settings import BenchSettings

from .alone import measure, named
from .bench_cells import BenchCell, cells_of, check_measured
from .bench_proofs import find_proofs, name_proofs

MAX_REGRESSION = 0.05
_SEED = 0  # of the gate's intervals


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A benchmark, what is proven of its files, and how it compares with a baseline."""

    document: dict[str, Any]
    current: BenchDocument  # the same, checked
    cells: Sequence[BenchCell]
    proofs: Mapping[str, Proof]
    gate: Gate | None
    refusal: NotComparableError | None  # why there is no gate

    def check(self) -> None:
        """Check that all was measured and nothing has become worse.

        Raises:
            EngineError: A model could not be measured.
            NotComparableError: Engine or kind of file are not those of the baseline, or a row is invalid.
            BudgetExceededError: A number has regressed.
        """
        if self.refusal:
            raise self.refusal
        check_measured(self.cells)
        if self.gate:
            check(self.gate)


def bench_files(
    files: Sequence[Path],
    *,
    settings: BenchSettings,
    engine: str | None = None,
    baseline: Path | None = None,
    max_regression: float = MAX_REGRESSION,
) -> Judged:
    """Measure files and hold them against a baseline, which is looked at before anything is measured.

    Args:
        files: Models on disk.
        settings: Of the stage.
        engine: That runs them; None goes by the form of each file.
        baseline: What an earlier `ammd bench --json` printed.
        max_regression: How much worse is allowed, as a fraction.

    Raises:
        ArtifactError: A file or the baseline is missing or of another kind.
        NotComparableError: The baseline was measured elsewhere or otherwise.
        EngineError: Nothing could be measured.
    """
    artifacts = named(files, engine=engine)
    known = load_baseline(baseline, settings) if baseline else None
    document = measure("bench", settings=settings, inputs={"artifacts": artifacts})
    return judge(document, files, baseline=known, max_regression=max_regression)


def judge(
    document: dict[str, Any], files: Sequence[Path], *, baseline: BenchDocument | None, max_regression: float
) -> Judged:
    """Return a benchmark of `files` with what is proven of them, held against a baseline.

    Args:
        document: Of `ammd bench`; proofs and the comparison are added to it.
        files: Models on disk.
        baseline: Of the same place and protocol.
        max_regression: How much worse is allowed, as a fraction.
    """
    proofs = find_proofs(files)
    name_proofs(document["bench"].values(), proofs)
    current = parse_document(document, label="ammd bench")
    gate, refusal = _compared(baseline, current, max_regression=max_regression)
    if gate:
        document["gate"] = gate.as_json()
    return Judged(
        document=document,
        current=current,
        cells=cells_of(document["bench"]),
        proofs=proofs,
        gate=gate,
        refusal=refusal,
    )


def load_baseline(
    path: Path,
    settings: BenchSettings,
    *,
    machine: Mapping[str, Any] | None = None,
    device: Mapping[str, Any] | None = None,
) -> BenchDocument:
    """Return a baseline with which a benchmark under `settings` can be compared.

    Args:
        path: What an earlier `ammd bench --json` printed.
        settings: Of the benchmark to come.
        machine: Where it will run; None for this machine.
        device: That machine as a device; None for this one.

    Raises:
        ArtifactError: It is no document of `ammd bench --json`.
        NotComparableError: It was measured elsewhere or otherwise, or either side has too few processes.
    """
    baseline = read_document(path)
    check_plan(baseline, settings, machine=machine or describe_machine(), device=device)
    return baseline


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
