"""How good each measurement is, cell by cell (a model at a thread count): for the screen, the report, the exit code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ammd.errors import EngineError

FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchCell:
    """What is to be known of a cell's numbers before they are believed."""

    model: str
    threads: int
    processes: int
    replaced: int  # processes that were measured again
    passes: int
    warmup_passes: int
    state: str  # `good`, `noisy`, `invalid` or `failed`
    why: str
    hint: str = ""


def cells_of(bench: Mapping[str, Mapping[str, Any] | None]) -> list[BenchCell]:
    """Return the cells of some models' records; records from before there was a rule have none."""
    return [cell for name, record in bench.items() if record for cell in _cells(name, record)]


def cells_of_run(summary: Mapping[str, Any]) -> list[BenchCell]:
    """Return the cells of a run."""
    rows = (*summary["models"], *summary["artifacts"])
    return cells_of({row["name"]: row.get("bench") for row in rows})


def check_measured(cells: Sequence[BenchCell], *, hint: str = "") -> None:
    """Check that every cell could be measured.

    Raises:
        EngineError: Names the first that could not, how it ended, and how many there are.
    """
    failed = [cell for cell in cells if cell.state == FAILED]
    if not failed:
        return
    first, more = failed[0], f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
    threads = "1 thread" if first.threads == 1 else f"{first.threads} threads"
    raise EngineError(
        f"`{first.model}, {threads}` could not be measured: {first.why}{more}",
        hint=hint or first.hint,
        failed=[f"{cell.model}, {cell.threads}" for cell in failed],
    )


def _cells(name: str, record: Mapping[str, Any]) -> Iterator[BenchCell]:
    rows = record.get("rows", ())
    one_depth = len({row.get("prompt_tokens") for row in rows}) == 1
    for row in rows:
        if "validity" not in row:
            continue
        failure = row.get("failure")
        yield BenchCell(
            model=name if one_depth else f"{name} at {row['prompt_tokens']} tokens",
            threads=row["threads"],
            processes=row["processes"],
            replaced=len(row["replaced"]),
            passes=sum(len(one["decode_tokens_per_s"]) for one in row.get("samples", ())),
            warmup_passes=sum(row.get("warmup_passes", ())),
            state=FAILED if failure else row["validity"],
            why="; ".join(row["validity_reasons"]),
            hint=failure["hint"] if failure else "",
        )
