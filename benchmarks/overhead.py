"""What a run costs beside its stages: hashing, manifests, locks, logs, report, and a process for each stage.

    python benchmarks/overhead.py [REPEATS]

Runs the packaged quickstart with a few prompts and steps, so that the models and files, and with them the bytes that
are hashed, are the quickstart's (but for the teacher's states at its texts), and the stages are short. Times what
`run_recipe` does outside the stages' processes; what such a process costs before its stage begins, with a stage that
does nothing; and, apart, the imports that a single process would have made once. The last two are processor seconds,
which other programs do not lengthen. Prints one JSON line last and writes `benchmarks/results/overhead.json`; `share`
is of the seconds in `results/quickstart.json`.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from document import ROOT, publish

from ammd.pipeline.launch import run_in_child
from ammd.pipeline.places import Place, WholeMachine
from ammd.pipeline.process_group import ProcessGroups
from ammd.pipeline.recipe import load_recipe
from ammd.pipeline.run import run_recipe
from ammd.pipeline.stages import STAGES, Stage
from ammd.runtime.settings import VerifySettings

SHORT = {
    "prepare.max_prompts": 8,
    "prepare.max_heldout": 4,
    "prepare.response_tokens": 16,
    "distill.batch_size": 4,
    "distill.warm.steps": 1,
    "distill.objective.steps": 1,
    "verify.texts": 2,
    "verify.kl_limit_nats": {
        "gguf-q8_0": 1.0,
        "gguf-q4_k_m": 9.0,
        "onnx-int4": 9.0,
    },  # of a student hardly trained
    "verify.greedy_prompts": 2,
    "verify.greedy_tokens": 8,
    "evaluate.prompts": 2,
    "evaluate.sampled_prompts": 2,
    "evaluate.file_prompts": 1,
    "evaluate.kl_texts": 2,
    "evaluate.answer_tokens": 8,
    "bench.prompt_tokens": 16,
    "bench.decode_tokens": 4,
    "bench.repetitions": 1,
    "bench.max_repetitions": 1,
    "bench.min_seconds": 0,
    "bench.max_warmup": 1,
    "bench.cold_loads": 0,
    "bench.bandwidth": False,
}
STARTS = 5
REPEATED = "torch and transformers imported in all stages but one"
Inputs = dict[str, Any]


def run(inputs: Inputs, settings: VerifySettings, folder: Path) -> dict[str, Any]:  # noqa: ARG001 - as all stages
    """Do nothing: the stage whose process is timed."""
    return {}


def main() -> None:
    """Measure, print and write."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    quickstart = json.loads((ROOT / "benchmarks/results/quickstart.json").read_text(encoding="utf-8"))
    whole = next(row["seconds"] for row in quickstart["rows"] if row["stage"] == "all")
    with tempfile.TemporaryDirectory(prefix="ammd-overhead-") as scratch:
        runs = [measure_run(Path(scratch, str(index))) for index in range(repeats)]
    # The process of a stage finds this file, whose `run` does nothing.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    starts = [seconds_of_start() for _ in range(STARTS)]
    imports = [seconds_of_imports() for _ in range(STARTS)]
    parts = {name: [one[name] for one in runs] for name in runs[0] if name not in ("stages", "bytes")}
    parts["a process for each stage"] = [len(STAGES) * seconds for seconds in starts]
    rows = [row_of(name, seconds, whole=whole) for name, seconds in parts.items()]
    total = sum(row["seconds"] for row in rows)
    rows.append({"part": "all", "seconds": round(total, 3), "share": total / whole})
    rows.append(row_of(REPEATED, [(len(STAGES) - 1) * seconds for seconds in imports], whole=whole))
    publish(
        "overhead",
        rows,
        settings={"changes": SHORT, "repeats": repeats, "starts": STARTS, "quickstart_seconds": whole},
        run_bytes=runs[0]["bytes"],
        stages_seconds=[one["stages"] for one in runs],
    )


def row_of(name: str, seconds: list[float], *, whole: float) -> dict[str, Any]:
    """Return a part's median, least and most, and its share of the quickstart."""
    median = statistics.median(seconds)
    return {
        "part": name,
        "seconds": round(median, 3),
        "least": round(min(seconds), 3),
        "most": round(max(seconds), 3),
        "share": median / whole,
    }


def measure_run(runs_dir: Path) -> dict[str, float]:
    """Return the seconds of a run by what they went into, and the bytes that it left."""
    places = TimedPlaces()
    began = time.perf_counter()
    summary = run_recipe(load_recipe(overrides=SHORT), runs_dir=runs_dir, places=places)
    seconds = time.perf_counter() - began
    spent = places.spent
    return {
        "looking for stages": spent["looking"],
        "hashing and publishing what stages wrote": spent["working"] - spent["stages"],
        "report and model card": spent["report"],
        "settings, data, lock and log": seconds - spent["looking"] - spent["working"] - spent["report"],
        "stages": spent["stages"],
        "bytes": sum(path.stat().st_size for path in Path(summary["path"]).rglob("*") if path.is_file()),
    }


class TimedPlaces(WholeMachine):
    """The whole machine for one run, with a clock at each turn."""

    def __init__(self) -> None:
        self.spent = dict.fromkeys(("looking", "report", "working", "stages"), 0.0)

    @contextmanager
    def looking(self, key: str) -> Iterator[None]:
        """Time what is done."""
        with self._timed("report" if key == "report" else "looking"):
            yield

    @contextmanager
    def working(self, stage: Stage, *, key: str, memory_bytes: int, groups: ProcessGroups) -> Iterator[Place]:
        """Time the stage's process, and what is done around it."""
        with (
            self._timed("working"),
            super().working(stage, key=key, memory_bytes=memory_bytes, groups=groups) as place,
        ):
            yield replace(place, run=partial(self._run, place.run))

    def _run(self, make: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        with self._timed("stages"):
            return make(*arguments, **options)

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.spent[what] += time.perf_counter() - began


def seconds_of_start() -> float:
    """Return what a stage takes that does nothing: a process, ammd's own imports, job and answer."""
    stage = replace(STAGES["verify"], module=Path(__file__).stem, inputs="Inputs")
    with tempfile.TemporaryDirectory(prefix="ammd-overhead-") as folder:
        outcome = run_in_child(stage, inputs={}, settings=VerifySettings(), folder=Path(folder))
    return outcome.cpu_seconds


def seconds_of_imports() -> float:
    """Return what a process takes to import what most stages need."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", "import torch, transformers"], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
