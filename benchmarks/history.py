"""How long `ammd runs` takes with many runs in the history, the start of the interpreter included.

    python benchmarks/history.py [--runs 10000] [--repeats 10]

Folders of runs are written to a temporary place: the packaged recipe with varied settings, manifests of all stages, a
log and a summary with numbers from a seeded generator, no weights. The first list reads all of them into the history;
the others find it there, and still look at each folder for a change. Each command is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from document import publish

from ammd.artifact import FileRecord, Manifest, write_json
from ammd.machine import library_versions
from ammd.pipeline.history_file import HISTORY_NAME
from ammd.pipeline.recipe import Recipe, load_recipe
from ammd.pipeline.run_folder import RECIPE_NAME, SUMMARY_NAME
from ammd.pipeline.run_log import LOG_NAME
from ammd.pipeline.stages import STAGES
from ammd.pipeline.toml_text import write_toml

AMMD = (sys.executable, "-P", "-c", "from ammd.pipeline.cli import main; main()")
COMMANDS = {
    "runs": ("runs",),
    "runs, filtered and sorted": (
        "runs",
        "--filter",
        "metrics.student.kl<0.6",
        "--filter",
        "distill.objective.kind=ammd",
        "--sort",
        "best.bytes",
    ),
    "runs --json": ("runs", "--json"),
    "runs --limit 0": ("runs", "--limit", "0"),
}
MODELS = ("teacher", "student-pruned", "student-warm", "student")
NAMES = 20  # recipes


def main() -> None:
    """Write the runs, time the commands, publish the rows."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--runs", type=int, default=10_000)
    options.add_argument("--repeats", type=int, default=10)
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as place:
        runs_dir = Path(place, "runs")
        write_runs(runs_dir, count=given.runs)
        first = measure(("runs",), runs_dir)
        rows = [row("runs, first list: all read in", [first], given.runs)]
        for name, command in COMMANDS.items():
            seconds = [measure(command, runs_dir) for _ in range(given.repeats)]
            rows.append(row(name, seconds, given.runs))
        seconds = [timed([sys.executable, "-P", "-c", "pass"]) for _ in range(given.repeats)]
        rows.append(row("python -c pass", seconds, given.runs))
        publish("history", rows, history_bytes=(runs_dir / HISTORY_NAME).stat().st_size)


def row(command: str, seconds: list[float], runs: int) -> dict[str, Any]:
    """Return a row of the result: median and spread."""
    return {
        "command": command,
        "runs": runs,
        "repeats": len(seconds),
        "seconds": round(statistics.median(seconds), 3),
        "seconds_least": round(min(seconds), 3),
        "seconds_most": round(max(seconds), 3),
    }


def measure(command: tuple[str, ...], runs_dir: Path) -> float:
    """Return the wall time of one `ammd` command."""
    return timed([*AMMD, *command, "--runs-dir", str(runs_dir)])


def timed(command: list[str]) -> float:
    """Return the wall time of a process."""
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def write_runs(runs_dir: Path, *, count: int) -> None:
    """Write folders of finished runs."""
    recipe, generator = load_recipe(check_files=False), random.Random(0)
    versions = library_versions()
    for number in range(count):
        folder = runs_dir / f"recipe-{number % NAMES}" / f"{number:08x}"
        folder.mkdir(parents=True)
        varied = varied_recipe(recipe, number, generator)
        (folder / RECIPE_NAME).write_text(write_toml(varied), encoding="utf-8")
        for stage in STAGES:
            manifest = stage_manifest(stage, varied, versions, generator)
            (folder / stage).mkdir()
            write_json(folder / stage / "manifest.json", asdict(manifest))
        began = 1_760_000_000 + 60 * number
        events = [
            {"event": "run_started", "time": began, "run": f"{folder.parent.name}/{folder.name}"},
            {"event": "run_ended", "time": began + 900, "exit_code": 0},
        ]
        (folder / LOG_NAME).write_text("".join(json.dumps(event) + "\n" for event in events))
        write_json(folder / SUMMARY_NAME, summary(varied, generator))


def varied_recipe(recipe: Recipe, number: int, generator: random.Random) -> dict[str, Any]:
    """Return the recipe's document with a seed, learning rate and objective of its own."""
    document = recipe.model_dump(mode="json")
    document["seed"] = number
    document["distill"]["warm"]["lr"] = generator.choice([1e-4, 3e-4, 6e-4])
    document["distill"]["objective"]["kind"] = generator.choice(["ammd", "gjsd", "forward_kl"])
    return document


def stage_manifest(
    stage: str, recipe: dict[str, Any], versions: dict[str, str], generator: random.Random
) -> Manifest:
    """Return what a stage of a run records."""
    return Manifest(
        stage=stage,
        key=f"{generator.getrandbits(256):064x}",
        files=tuple(
            FileRecord(path=f"student/{index}", bytes=generator.getrandbits(28), sha256="0" * 64)
            for index in range(8)
        ),
        settings=recipe[stage],
        versions=versions,
        results={"generated_tokens": generator.getrandbits(20), "trained_tokens": generator.getrandbits(22)},
        seconds=generator.uniform(10, 500),
        cpu_seconds=generator.uniform(10, 1000),
        peak_rss_bytes=generator.getrandbits(33),
    )


def summary(recipe: dict[str, Any], generator: random.Random) -> dict[str, Any]:
    """Return as much of a run's summary as the history reads."""

    def model(name: str) -> dict[str, Any]:
        return {
            "name": name,
            "bytes": generator.getrandbits(28),
            "quality": {
                "kl_to_teacher_nats": generator.uniform(0.4, 0.9),
                "rouge_l": generator.random(),
                "repetition": generator.random(),
                "nll_under_teacher_nats": generator.uniform(1, 6),
            },
            "parity": {"kl_nats": generator.random()},
            "bench": {
                "decode_tokens_per_s": generator.uniform(10, 200),
                "ttft_s": generator.random(),
                "peak_rss_bytes": generator.getrandbits(28),
            },
        }

    return {
        "models": [model(name) for name in MODELS],
        "artifacts": [model(str(scheme)) for scheme in recipe["export"]["schemes"]],
    }


if __name__ == "__main__":
    main()
