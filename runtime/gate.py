"""Is it slower than it was? One benchmark's samples against another's, with a verdict for each number.

Two documents are compared only where nothing but the files and the version of the engine's library can have made the
difference, and where no row has failed or is `invalid`. The ratio of medians, current over baseline, has a 95 %
interval from the samples of both (`bootstrap`). A number has regressed when the whole interval is worse than is
allowed, so that noise fails nobody's build; where the limit lies in the interval the verdict is undecided, and more
processes narrow it. Peak memory hardly varies from process to process and is judged by its ratio alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from ammd.errors import BudgetExceededError, NotComparableError

from .bench_document import BenchDocument, DeviceRecord, Machine, Model, Row
from .bootstrap import ratio_interval
from .settings import BenchSettings

if TYPE_CHECKING:
    import numpy as np

LEAST_PROCESSES = 3
HIGHER_IS_BETTER: Mapping[str, bool] = {
    "decode_tokens_per_s": True,
    "prefill_tokens_per_s": True,
    "ttft_s": False,
    "peak_rss_bytes": False,
}
_ABSENT = "absent"


class Verdict(Enum):
    """What became of a number."""

    FINE = "fine"
    UNDECIDED = "undecided"
    REGRESSION = "regression"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One number of one model at one thread count."""

    metric: str
    model: str
    threads: int
    baseline: float
    current: float
    ratio: float  # current / baseline
    low: float | None  # of the ratio's 95 % interval; None where the ratio alone is judged
    high: float | None
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """The comparison of two benchmarks."""

    max_regression: float
    findings: tuple[Finding, ...]
    only_in_baseline: tuple[str, ...]  # models and thread counts
    only_in_current: tuple[str, ...]
    noisy: tuple[str, ...]  # models and thread counts that are on either side, and why

    def as_json(self) -> dict[str, Any]:
        """Return the part of the document that is called `gate`."""
        rows = [asdict(finding) | {"verdict": finding.verdict.value} for finding in self.findings]
        return {
            "max_regression": self.max_regression,
            "rows": rows,
            "only_in_baseline": list(self.only_in_baseline),
            "only_in_current": list(self.only_in_current),
            "noisy": list(self.noisy),
        }


def check_plan(
    baseline: BenchDocument,
    settings: BenchSettings,
    *,
    machine: Mapping[str, Any],
    device: Mapping[str, Any] | None = None,
) -> None:
    """Check before anything is measured that it could be compared.

    Args:
        baseline: The earlier benchmark.
        settings: Of the one to come.
        machine: Where it will run.
        device: That machine as a device; None for this one.

    Raises:
        NotComparableError: Too few processes on either side, another device or another protocol.
    """
    for count, hint in (
        (settings.processes, f"`--set processes={LEAST_PROCESSES}`"),
        (
            min(row.processes for row in baseline.rows),
            f"measure the baseline anew with `--set processes={LEAST_PROCESSES}`",
        ),
    ):
        if count < LEAST_PROCESSES:
            raise NotComparableError(
                f"not comparable: {count} of at least {LEAST_PROCESSES} processes", hint=hint, found=count
            )
    _refuse_failures({"the baseline": baseline})
    reached = None if device is None else DeviceRecord.model_validate(device)
    there = _place(Machine.model_validate(machine), reached)
    found = _place_differences(_place(baseline.machine, baseline.device), there)
    planned = settings.model_dump()
    depths = {depth or settings.prompt_tokens for depth in settings.depths}
    for known in map(_protocol, baseline.rows):
        depth = known["prompt_tokens"] if known["prompt_tokens"] in depths else settings.prompt_tokens
        found += _differences(known, planned | {"prompt_tokens": depth}, of=known)
    _refuse(found)


def compare(
    baseline: BenchDocument, current: BenchDocument, *, max_regression: float, generator: np.random.Generator
) -> Gate:
    """Return a verdict on each number that both have; models are matched by the name of their file.

    Args:
        baseline: The earlier benchmark.
        current: The one to judge.
        max_regression: How much worse a number may become, as a fraction of the baseline's.
        generator: For the intervals.

    Raises:
        NotComparableError: No model in common; device, protocol, engine or kind of file differ; or a row of either side
            failed or is invalid.
    """
    sides = {"the baseline": baseline, "this benchmark": current}
    _refuse_failures(sides)
    old, new = _cells(baseline), _cells(current)
    shared = [key for key in old if key in new]
    if not shared:
        names = [", ".join(f"`{_label(*key)}`" for key in side) for side in (old, new)]
        raise NotComparableError(
            f"not comparable: the baseline has {names[0]}, this benchmark {names[1]}",
            hint="models are matched by the names of their files, and by threads",
        )
    found = _place_differences(*(_place(one.machine, one.device) for one in (baseline, current)))
    for key in shared:
        before, after = (_facts(*cell) for cell in (old[key], new[key]))
        found += _differences(before, after, of=before | after)
    _refuse(found)
    marked = {
        side: {_label(*key): row for key, (_, row) in cells.items() if key in shared}
        for side, cells in zip(sides, (old, new), strict=True)
    }
    _refuse_invalid(marked)
    return Gate(
        max_regression=max_regression,
        findings=tuple(
            finding
            for key in shared
            for finding in _judge(key, old[key][1], new[key][1], max_regression, generator)
        ),
        only_in_baseline=tuple(_label(*key) for key in old if key not in new),
        only_in_current=tuple(_label(*key) for key in new if key not in old),
        noisy=_marked(marked, "noisy"),
    )


def check(gate: Gate) -> None:
    """Check that nothing has regressed.

    Raises:
        BudgetExceededError: Names the first number that has, and how many there are.
    """
    worse = [finding for finding in gate.findings if finding.verdict is Verdict.REGRESSION]
    if not worse:
        return
    first, more = worse[0], f" (and {len(worse) - 1} more)" if len(worse) > 1 else ""
    interval = "" if first.low is None else f", 95 % interval {first.low:.3f} to {first.high:.3f}"
    raise BudgetExceededError(
        f"`{_label(first.model, first.threads)}`: `{first.metric}` is {first.ratio:.3f} of the baseline's{interval}; "
        f"{gate.max_regression:.1%} worse is allowed{more}",
        hint="look at what changed since the baseline; if it is meant, make a new baseline",
        regressions=[asdict(finding) | {"verdict": finding.verdict.value} for finding in worse],
    )


def _judge(
    key: tuple[str, int], old: Row, new: Row, max_regression: float, generator: np.random.Generator
) -> Iterator[Finding]:
    for metric, higher_is_better in HIGHER_IS_BETTER.items():
        before, after = getattr(old, metric), getattr(new, metric)
        if before is None or after is None:  # not timed by this engine
            continue
        ratio = after / before
        low = high = None
        if metric != "peak_rss_bytes":
            low, high = ratio_interval(new.by_process(metric), old.by_process(metric), generator=generator)
        ends = [ratio if end is None else end for end in (low, high)]
        yield Finding(
            metric=metric,
            model=key[0],
            threads=key[1],
            baseline=before,
            current=after,
            ratio=ratio,
            low=low,
            high=high,
            verdict=verdict_of(*ends, max_regression=max_regression, higher_is_better=higher_is_better),
        )


def verdict_of(low: float, high: float, *, max_regression: float, higher_is_better: bool) -> Verdict:
    """Return the verdict on a ratio that lies between `low` and `high`."""
    if higher_is_better:
        best, worst = high - (1 - max_regression), low - (1 - max_regression)
    else:
        best, worst = 1 + max_regression - low, 1 + max_regression - high
    if best < 0:
        return Verdict.REGRESSION
    return Verdict.FINE if worst >= 0 else Verdict.UNDECIDED


def _cells(document: BenchDocument) -> dict[tuple[str, int], tuple[Model, Row]]:
    """Return each row under its file's name, or its model's where two files have the same, and its threads."""
    files = [model.file.name for model in document.bench.values()]
    cells: dict[tuple[str, int], tuple[Model, Row]] = {}
    for name, model in document.bench.items():
        known_as = model.file.name if files.count(model.file.name) == 1 else name
        one_depth = len({row.prompt_tokens for row in model.rows}) == 1
        for row in model.rows:
            cell = known_as if one_depth else f"{known_as} at {row.prompt_tokens} tokens"
            cells[cell, row.threads] = (model, row)
    return cells


def _place(machine: Machine, device: DeviceRecord | None) -> dict[str, Any]:
    """Return where something was measured: two boards of one model are one, by whatever name they are reached."""
    here = {"cpu": machine.cpu, "cores": machine.cores, "device": "none: this machine"}
    if device is None:
        return here
    return here | {"device": device.name.partition(":")[0], "device.model": device.model}


def _place_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    names = {**old, **new} if old["device"] == new["device"] else ("cpu", "cores", "device")
    return _differences(old, new, of=names)


def _protocol(row: Row) -> dict[str, Any]:
    return {name: getattr(row, name) for name in ("prompt_tokens", "decode_tokens", "warmup")}


def _facts(model: Model, row: Row) -> dict[str, Any]:
    """Return what has to be the same on both sides; the engine's version and the number of passes need not."""
    options = {f"settings.{name}": value for name, value in row.settings.items()}
    if row.cores is not None:
        options["cores"] = list(row.cores)
    engine = row.engine.rstrip(")").rpartition(" ")[0]
    return {"file.kind": model.file.kind, "engine": engine} | _protocol(row) | options


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], *, of: Iterable[str]) -> list[str]:
    sides = [(name, old.get(name, _ABSENT), new.get(name, _ABSENT)) for name in of]
    return [f"`{name}` was `{before}`, is `{after}`" for name, before, after in sides if before != after]


def _refuse(differences: Iterable[str]) -> None:
    if found := list(dict.fromkeys(differences)):
        raise NotComparableError(
            f"not comparable with the baseline: {'; '.join(found)}",
            hint="measure the baseline anew on this machine with the same settings",
            differences=found,
        )


def _refuse_failures(sides: Mapping[str, BenchDocument]) -> None:
    failed = [
        f"`{_label(model.file.name, row.threads)}` failed in {side}: {row.failure.ended}"
        for side, document in sides.items()
        for model in document.bench.values()
        for row in model.failures
    ]
    if failed:
        raise NotComparableError(
            f"not comparable: {'; '.join(failed)}",
            hint="leave the file out on both sides, or measure where it runs",
            failures=failed,
        )


def _refuse_invalid(sides: Mapping[str, Mapping[str, Row]]) -> None:
    if found := _marked(sides, "invalid"):
        raise NotComparableError(
            f"not comparable: {'; '.join(found)}",
            hint="measure again while nothing else runs on this machine",
            invalid=list(found),
        )


def _marked(sides: Mapping[str, Mapping[str, Row]], validity: str) -> tuple[str, ...]:
    """Return what is said of each row with this verdict."""
    return tuple(
        f"`{label}` is {validity} in {side}: {', '.join(row.validity_reasons)}"
        for side, rows in sides.items()
        for label, row in rows.items()
        if row.validity == validity
    )


def _label(name: str, threads: int) -> str:
    return f"{name}, {threads} {'thread' if threads == 1 else 'threads'}"
