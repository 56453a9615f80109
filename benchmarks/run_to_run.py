"""Do the intervals hold, and is a disturbed measurement noticed? The same cell measured over and over.

Undisturbed: 21 runs, one after the other. How often does a run's interval cover the median of the next one, and how
many are marked `noisy` or `invalid` although nobody disturbed them? Disturbed: 20 runs in which a process that does
nothing but count starts half-way through (by how long the undisturbed ones took) and goes on to the end. How many are
marked? Limits and rule are those of `ammd bench`; only passes and processes are short.

Every run is kept in WORK_DIR, so that a call goes on where the one before it ended, and `--seconds` ends a call early:
whoever shares the machine gives it away for so long. The last one writes `benchmarks/results/run_to_run.json`;
`--so-far` writes it from the runs that there are.

Usage:
    python benchmarks/run_to_run.py WORK_DIR GGUF [--seconds 30]
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cells import Cells
from document import publish

from ammd.runtime import bench
from ammd.runtime.artifact_ref import ArtifactRef
from ammd.runtime.settings import BenchSettings
from ammd.runtime.validity import rule_as_json

METRICS = ("decode_tokens_per_s", "prefill_tokens_per_s", "ttft_s")
INTERVALS = {"median": ("low", "high"), "next median": ("next_low", "next_high")}
RUNS = {"undisturbed": 21, "disturbed": 20}
SETTINGS = BenchSettings(
    threads=(1,),  # the machine's other core takes what little else there is
    prompt_tokens=32,
    decode_tokens=12,
    processes=5,
    retries=1,
    repetitions=4,
    max_repetitions=8,
    min_seconds=0.5,
    max_warmup=4,
    cold_loads=0,
    bandwidth=False,
)
_COUNT = "import sys, time; time.sleep(float(sys.argv[1]))\nwhile True: pass"


def main() -> None:
    """Measure what is missing; write the result file once nothing is."""
    arguments = parse_arguments()
    ends = time.monotonic() + arguments.seconds
    cells = Cells(arguments.work)
    names = [f"{kind}-{number:02}" for kind, runs in RUNS.items() for number in range(runs)]
    for name in names:
        if cells.get(name) is None and time.monotonic() < ends:
            cells.compute([name], lambda wanted: one_run(wanted, arguments.gguf, cells))
            print(name, file=sys.stderr)
    missing = [name for name in names if cells.get(name) is None]
    if missing:
        print(f"{len(missing)} of {len(names)} runs are missing", file=sys.stderr)
        if not arguments.so_far:
            return
    found = {kind: of_kind(cells, kind) for kind in RUNS}
    publish(
        "run_to_run",
        [*summary_rows(found), *(run_row(kind, run) for kind, runs in found.items() for run in runs)],
        settings=SETTINGS.model_dump(),
        file=found["undisturbed"][0]["file"],
        validity_rule=rule_as_json(),
    )


def parse_arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description="Measure one cell over and over.")
    parser.add_argument("work", type=Path, metavar="WORK_DIR")
    parser.add_argument("gguf", type=Path, metavar="GGUF")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="no run begins after these")
    parser.add_argument("--so-far", action="store_true", help="write what there is, though runs are missing")
    return parser.parse_args()


def of_kind(cells: Cells, kind: str) -> list[dict[str, Any]]:
    """Return the runs of a kind that are there, in order."""
    found = (cells.get(f"{kind}-{number:02}") for number in range(RUNS[kind]))
    return [run for run in found if run is not None]


def one_run(name: str, gguf: Path, cells: Cells) -> dict[str, Any]:
    """Measure the cell once, disturbed if the run's name says so."""
    delay = None
    if name.startswith("disturbed"):
        delay = statistics.median(run["seconds"] for run in of_kind(cells, "undisturbed")) / 2
    started = time.monotonic()
    with disturbed_after(delay):
        measured = bench.measure_artifacts([ArtifactRef(name="cell", path=gguf)], SETTINGS)["cell"]
    row = {key: value for key, value in measured.items() if key != "rows"}
    return {**row, "seconds": time.monotonic() - started, "disturbed_after_s": delay}


@contextlib.contextmanager
def disturbed_after(seconds: float | None) -> Iterator[None]:
    """Let a process count from so many seconds on; nothing disturbs with None."""
    if seconds is None:
        yield
        return
    with subprocess.Popen([sys.executable, "-c", _COUNT, str(seconds)]) as process:
        try:
            yield
        finally:
            process.kill()


def summary_rows(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Return how often the intervals covered the next run, and how many runs of each kind were marked."""
    runs = found["undisturbed"]
    pairs = list(itertools.pairwise(runs))
    rows: list[dict[str, Any]] = [
        {
            "what": "covers the next median",
            "metric": metric,
            "interval": name,
            "count": sum(
                one[f"{metric}_{low}"] <= after[metric] <= one[f"{metric}_{high}"] for one, after in pairs
            ),
            "of": len(pairs),
        }
        for metric in METRICS
        for name, (low, high) in INTERVALS.items()
    ]
    return rows + [
        {
            "what": "marked",
            "runs": kind,
            "count": sum(run["validity"] != "good" for run in of),
            "invalid": sum(run["validity"] == "invalid" for run in of),
            "of": len(of),
        }
        for kind, of in found.items()
    ]


def run_row(kind: str, run: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of one run that the counts rest on."""
    ends = [end for names in INTERVALS.values() for end in names]
    return {
        "runs": kind,
        "seconds": run["seconds"],
        "disturbed_after_s": run["disturbed_after_s"],
        "validity": run["validity"],
        "validity_reasons": run["validity_reasons"],
        "processes": run["processes"],
        "replaced": len(run["replaced"]),
        "passes": [len(one["ttft_s"]) for one in run["samples"]],
        "warmup_passes": run["warmup_passes"],
        "competing_share": [one["competing_share"] for one in run["noise"]],
        "steal_share": [one["steal_share"] for one in run["noise"]],
        **{metric: run[metric] for metric in METRICS},
        **{f"{metric}_{end}": run[f"{metric}_{end}"] for metric in METRICS for end in ends},
    }


if __name__ == "__main__":
    main()
