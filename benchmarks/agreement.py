"""Do our numbers agree with the engines' own tools, and what does measuring cost?

    python benchmarks/agreement.py EXPORT [--work FOLDER] [--rounds 9] [--cells N]

EXPORT is a folder with the quickstart's files. Rows, as engine, artifact, metric, ours, native, ratio:

- prefill and decode rate of our llama.cpp engine beside llama-bench, of our onnxruntime-genai engine beside the
  library's own loop, and of our onnxruntime engine beside that loop on the same folder (settings: `native_rates`);
- decode of both ONNX engines beside that loop in one process, turn by turn (`alternation`), with one and two threads,
  in five processes, which is more precise;
- peak memory that our child reports, beside what GNU time says of the same process;
- what the harness itself takes of a core while it measures (nothing to compare it with);
- what a decoded token costs outside the engine's library (`token_parts`).

Ours and native run in turn, each in a fresh process; a round has one of each, and their order changes from round to
round. `ratio` is the median of the rounds' own ratios, with a bootstrap interval. Each round is kept as a file in the
work folder, so an interrupted benchmark goes on; with `--cells N` a call ends after N of them and publishes when none
is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from alternation import NATIVE
from cells import Cells, Result
from document import publish
from native_rates import METRICS, Measure, Protocol, genai_loop, llama_bench

from ammd.errors import AmmdError, EngineError
from ammd.machine import available_cores
from ammd.runtime import bench
from ammd.runtime.artifact_ref import ArtifactRef, EngineKind
from ammd.runtime.bootstrap import median_interval
from ammd.runtime.child import call
from ammd.runtime.host import Here
from ammd.runtime.llama_tools import native_tool, run_command
from ammd.runtime.settings import BenchSettings

MEMORY = "peak_rss_bytes"
_SEED = 0  # of the intervals
_PARTS_TOKENS = 256
_TURN_THREADS, _TURN_PROCESSES = (1, 2), 5
_TURNS, _TURN_TOKENS = 24, 40
_TOKEN_COST_S = 0.15e-3  # the most that a token may cost outside the library
_HARNESS_SHARE = 0.01  # of a core


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Our engine and what it is held against, on one model."""

    engine: EngineKind
    path: Path
    native: str  # its name
    measure: Measure
    goal: tuple[float, float]  # between which the ratio of the rates should lie

    @property
    def name(self) -> str:
        """As it is called in the work folder."""
        return f"{self.engine.value}-{self.path.name}"


def main() -> None:
    """Measure what is missing; publish once nothing is."""
    arguments = parse_arguments()
    protocol = Protocol(
        threads=available_cores(), prompt_tokens=128, decode_tokens=64, repetitions=arguments.repetitions
    )
    pairs = pairs_in(arguments.export)
    cells = Cells(arguments.work)
    names = [
        "harness/0",
        *(
            f"alternation-{threads}/{number}"
            for threads in _TURN_THREADS
            for number in range(_TURN_PROCESSES)
        ),
        *(f"parts-{pair.name}/0" for pair in parts_pairs(pairs)),
        *(f"{pair.name}/{number}" for number in range(arguments.rounds) for pair in pairs),
    ]
    missing = [name for name in names if cells.get(name) is None]
    wanted = missing[: arguments.cells]
    by_name = {pair.name: pair for pair in pairs}
    cells.compute(wanted, lambda name: compute(name, by_name, protocol))
    if len(wanted) < len(missing):
        print(f"{len(missing) - len(wanted)} of {len(names)} rounds are missing", file=sys.stderr)
        return
    found = {name: result for name in names if (result := cells.get(name)) is not None}
    rows = [row for pair in pairs for row in pair_rows(pair, rounds_of(found, pair.name))]
    for threads in _TURN_THREADS:
        turns = rounds_of(found, f"alternation-{threads}")
        rows += alternation_rows(pairs, turns, threads=threads)
    rows += [harness_row(rounds_of(found, "harness"))]
    rows += [parts_row(pair, rounds_of(found, f"parts-{pair.name}")) for pair in parts_pairs(pairs)]
    publish("agreement", rows, settings={"rounds": arguments.rounds, **_facts(protocol)})


def parse_arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description="Hold our numbers against those of the engines' own tools.")
    parser.add_argument("export", type=Path, help="folder with student-*.gguf and onnx-int4")
    parser.add_argument("--work", type=Path, default=Path("agreement-work"))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--repetitions", type=int, default=5, help="passes in each process")
    parser.add_argument("--cells", type=int, help="end after so many rounds")
    return parser.parse_args()


def pairs_in(export: Path) -> tuple[Pair, ...]:
    """Return what is compared."""
    tool = llama_bench(native_tool("llama-bench"))
    close, at_least = (0.97, 1.03), (1.0, float("inf"))
    onnx = export / "onnx-int4"
    ours = [
        Pair(engine=EngineKind.LLAMA_CPP, path=path, native="llama-bench", measure=tool, goal=close)
        for path in (export / "student-q4_k_m.gguf", export / "student-q8_0.gguf")
    ]
    loop = "onnxruntime-genai's loop"
    return (
        *ours,
        Pair(engine=EngineKind.ONNX_GENAI, path=onnx, native=loop, measure=genai_loop, goal=close),
        Pair(engine=EngineKind.ONNX_RUNTIME, path=onnx, native=loop, measure=genai_loop, goal=at_least),
    )


def parts_pairs(pairs: Sequence[Pair]) -> list[Pair]:
    """Return one pair of each engine: the file does not matter to Python."""
    return list({pair.engine: pair for pair in reversed(pairs)}.values())[::-1]


def compute(name: str, pairs: Mapping[str, Pair], protocol: Protocol) -> Result:
    """Measure one cell."""
    print(name, file=sys.stderr)
    kind, _, number = name.rpartition("/")
    if kind == "harness":
        return harness_share(next(iter(pairs.values())))
    if kind.startswith("alternation-"):
        (onnx,) = {pair.path for pair in pairs.values() if pair.path.is_dir()}
        threads = int(kind.removeprefix("alternation-"))
        turns = {"rounds": _TURNS, "tokens": _TURN_TOKENS, "threads": threads}
        return from_script("alternation", {"path": str(onnx), **turns})
    if kind.startswith("parts-"):
        return token_parts(pairs[kind.removeprefix("parts-")], threads=protocol.threads)
    return one_round(pairs[kind], protocol, number=int(number))


def one_round(pair: Pair, protocol: Protocol, *, number: int) -> Result:
    """Run ours and native once, the first of them alternating: whoever comes second may find another machine."""
    _warm(pair.path)
    if number % 2 == 0:
        ours, settings = our_numbers(pair, protocol)
        return {"ours": ours, "native": pair.measure(pair.path, protocol, settings)}
    _, settings = our_numbers(pair, _briefly(protocol))  # tells what is in effect
    native = pair.measure(pair.path, protocol, settings)
    return {"ours": our_numbers(pair, protocol)[0], "native": native}


def our_numbers(pair: Pair, protocol: Protocol) -> tuple[dict[str, float], Mapping[str, Any]]:
    """Return what our child measures, with what GNU time says of its memory; and its settings."""
    settings = BenchSettings(
        prompt_tokens=protocol.prompt_tokens,
        decode_tokens=protocol.decode_tokens,
        repetitions=protocol.repetitions,
        warmup=1,
    )
    request = settings.model_dump(mode="json") | {
        "path": str(pair.path),
        "engine": pair.engine.value,
        "threads": protocol.threads,
        # As many passes as theirs, whatever they show.
        "max_repetitions": protocol.repetitions,
        "max_warmup": 1,
    }
    result, peak = _timed_child(["bench_child:measure", request])
    numbers = {
        "prefill_tokens_per_s": protocol.prompt_tokens / statistics.median(result["prefill_s"]),
        "decode_tokens_per_s": statistics.median(len(one) / sum(one) for one in result["token_s"]),
        MEMORY: result["peak_rss_bytes"],
        "time_peak_rss_bytes": peak,
    }
    return numbers, result["settings"]


class _TimedHost(Here):
    """This machine; counts what this process takes while it waits for its children."""

    def __init__(self) -> None:
        super().__init__()
        self.call = self._timed
        self.wall_s = self.cpu_s = 0.0

    def measure(self, request: Mapping[str, object]) -> Mapping[str, Any]:
        return self._timed("bench_child:measure", request)

    def _timed(self, function: str, request: Mapping[str, object]) -> dict[str, Any]:
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            return call(function, request)
        finally:
            self.cpu_s += time.process_time() - cpu
            self.wall_s += time.perf_counter() - wall


def harness_share(pair: Pair) -> Result:
    """Return what this process takes of a core while its children measure, and over the whole of a benchmark.

    The latter has hashing the file and the intervals in it, which no child has to bear.
    """
    _warm(pair.path)
    host = _TimedHost()
    wall, cpu = time.perf_counter(), time.process_time()
    bench.measure_artifacts(
        [ArtifactRef(name="model", path=pair.path)], BenchSettings(threads=(0,), repetitions=10), host
    )
    whole = (time.process_time() - cpu) / (time.perf_counter() - wall)
    return {"share": host.cpu_s / host.wall_s, "whole_share": whole}


def token_parts(pair: Pair, *, threads: int) -> Result:
    """Return what a token costs where, from a fresh process."""
    request = {
        "path": str(pair.path),
        "engine": pair.engine.value,
        "threads": threads,
        "tokens": _PARTS_TOKENS,
    }
    return from_script("token_parts", request)


def from_script(name: str, request: Mapping[str, Any]) -> Result:
    """Return what one of the scripts beside this one prints, from a fresh process."""
    script = Path(__file__).with_name(f"{name}.py")
    found: Result = json.loads(run_command([sys.executable, script, json.dumps(request)]).splitlines()[-1])
    return found


def pair_rows(pair: Pair, rounds: Sequence[Result]) -> Iterable[dict[str, Any]]:
    """Yield a row for each rate, and one for memory."""
    for metric in METRICS:
        sides = [(one["ours"][metric], one["native"][metric]) for one in rounds]
        yield _row(pair, metric, [sides], native=pair.native, goal=pair.goal)
    sides = [(one["ours"][MEMORY], one["ours"]["time_peak_rss_bytes"]) for one in rounds]
    yield _row(pair, MEMORY, [sides], native="GNU time", goal=(0.98, 1.02))


def _row(
    pair: Pair,
    metric: str,
    groups: Sequence[Sequence[tuple[float, float]]],
    *,
    native: str,
    goal: tuple[float, float],
) -> dict[str, Any]:
    """Return what pairs of ours and native amount to; those of one group share a process."""
    ratios = [[ours / theirs for ours, theirs in group] for group in groups]
    sides = [side for group in groups for side in group]
    ours, theirs = ([side[place] for side in sides] for place in (0, 1))
    low, high = median_interval(ratios, generator=np.random.default_rng(_SEED))
    ratio = statistics.median(one for group in ratios for one in group)
    return {
        "engine": pair.engine.value,
        "artifact": pair.path.name,
        "metric": metric,
        "ours": statistics.median(ours),
        "native": statistics.median(theirs),
        "native_tool": native,
        "ratio": ratio,
        "ratio_low": low,
        "ratio_high": high,
        "goal_low": goal[0],
        "goal_high": None if goal[1] == float("inf") else goal[1],
        "reached": _verdict(low, high, goal),
        "rounds": len(sides),
        "ours_min": min(ours),
        "ours_max": max(ours),
        "native_min": min(theirs),
        "native_max": max(theirs),
    }


def _verdict(low: float, high: float, goal: tuple[float, float]) -> str:
    """Return whether an interval of a ratio lies within the goal, outside, or across its border."""
    if goal[0] <= low and high <= goal[1]:
        return "yes"
    return "no" if high < goal[0] or low > goal[1] else "undecided"


def alternation_rows(
    pairs: Sequence[Pair], processes: Sequence[Result], *, threads: int
) -> Iterable[dict[str, Any]]:
    """Yield the decode rates of both ONNX engines beside the loop in the same process."""
    for pair in pairs:
        if pair.engine.value in processes[0]:
            sides = [
                [
                    (1 / ours, 1 / native)
                    for ours, native in zip(seconds[pair.engine.value], seconds[NATIVE], strict=True)
                ]
                for seconds in processes
            ]
            metric = f"decode_tokens_per_s in one process, {threads} thread{'s' * (threads > 1)}"
            yield _row(pair, metric, sides, native=pair.native, goal=pair.goal)


def harness_row(rounds: Sequence[Result]) -> dict[str, Any]:
    """Return what the harness takes of a core."""
    share = statistics.median(one["share"] for one in rounds)
    return {
        "engine": "harness",
        "artifact": None,
        "metric": "cpu_share",
        "ours": share,
        "native": None,
        "ratio": None,
        "whole_share": statistics.median(one["whole_share"] for one in rounds),
        "goal_high": _HARNESS_SHARE,
        "reached": "yes" if share < _HARNESS_SHARE else "no",
        "rounds": len(rounds),
    }


def parts_row(pair: Pair, rounds: Sequence[Result]) -> dict[str, Any]:
    """Return where a token's time goes; `ours` is what our Python and the choice of the token cost together."""
    parts = {
        name: statistics.median(one[name] for one in rounds) for name in ("library_s", "python_s", "choice_s")
    }
    ours = parts["python_s"] + parts["choice_s"]
    return {
        "engine": pair.engine.value,
        "artifact": pair.path.name,
        "metric": "token_outside_library_s",
        "ours": ours,
        "native": None,
        "ratio": None,
        **parts,
        "vocab_size": rounds[0]["vocab_size"],
        "goal_high": _TOKEN_COST_S,
        "reached": "yes" if ours < _TOKEN_COST_S else "no",
        "rounds": len(rounds),
    }


def rounds_of(found: Mapping[str, Result], name: str) -> list[Result]:
    """Return a cell's rounds."""
    return [result for key, result in found.items() if key.rpartition("/")[0] == name]


def _timed_child(request: Sequence[object]) -> tuple[dict[str, Any], int]:
    """Return what one of our children answers, and its peak memory by GNU time, in bytes."""
    timer = shutil.which("time")
    if timer is None:
        raise EngineError("GNU time is not installed", hint="Debian has it as `time`")
    command = [timer, "-v", sys.executable, "-P", "-m", "ammd.runtime.child"]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # as `Child` has it
    done = subprocess.run(
        command,
        input=json.dumps(request) + "\n",
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    peak = re.search(r"Maximum resident set size \(kbytes\): (\d+)", done.stderr)
    if done.returncode or peak is None:
        raise EngineError(f"the child ended with {done.returncode}:\n{done.stderr[-1000:]}")
    outcome = json.loads(done.stdout.splitlines()[-1])
    if "error" in outcome:
        raise EngineError(outcome["error"]["message"])
    return outcome["result"], 1024 * int(peak.group(1))


def _warm(path: Path) -> None:
    """Read a model's files, so that no side pays for the disk."""
    for file in path.rglob("*") if path.is_dir() else (path,):
        if file.is_file():
            file.read_bytes()


def _briefly(protocol: Protocol) -> Protocol:
    return Protocol(threads=protocol.threads, prompt_tokens=8, decode_tokens=2, repetitions=1)


def _facts(protocol: Protocol) -> dict[str, int]:
    return {
        "threads": protocol.threads,
        "prompt_tokens": protocol.prompt_tokens,
        "decode_tokens": protocol.decode_tokens,
        "repetitions": protocol.repetitions,
    }


if __name__ == "__main__":
    try:
        main()
    except AmmdError as error:
        sys.exit(f"{error}\nhint: {error.hint}" if error.hint else str(error))
