"""Experiments that take hours, made of parts: each in a process of its own, whole or not at all, and made only once.

A script names its parts as paths below its work folder (`prepared`, `seed0/warm`) and says how each is written. Called
without `--part` it makes those that are missing, by calling itself once for each, and compares what they left.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ammd.errors import AmmdError
from ammd.machine import available_cores
from ammd.pipeline.recipe import Recipe, data_file, load_recipe
from ammd.pipeline.stages import KEEP_FREED_MEMORY

if TYPE_CHECKING:
    from ammd.distill.settings import DistillSettings
    from ammd.distill.training import Training


def parser_of(doc: str | None, *, prompts: int, prompts_help: str) -> argparse.ArgumentParser:
    """Return the options that every such script has."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("work", type=Path, metavar="WORK_DIR")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--prompts", type=int, default=prompts, help=prompts_help)
    parser.add_argument("--recipe", type=Path, default=None, help="the packaged one when absent")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--part", default="", help=argparse.SUPPRESS)
    return parser


def recipe_of(arguments: argparse.Namespace) -> Recipe:
    """Return the recipe that the options name, with as many held-out prompts as are asked for."""
    overrides = [*arguments.set, f"prepare.max_heldout={arguments.prompts}"]
    return load_recipe(arguments.recipe, overrides=overrides)


def make(part: str, work: Path) -> None:
    """Make one part in a process of its own, unless it is there."""
    if (work / part).is_dir():
        return
    command = [sys.executable, *sys.argv, "--part", part]
    threads = {"OMP_NUM_THREADS": str(available_cores())}
    subprocess.run(command, env={**KEEP_FREED_MEMORY, **threads, **os.environ}, check=True)


def write_part(part: str, work: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a sibling folder and rename it into place."""
    folder = work / f"{part}.part"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write(folder)
    folder.rename(work / part)


def prepare(recipe: Recipe, folder: Path) -> None:
    """Write the teacher, its texts and the student to start from."""
    from ammd.distill import prepare

    files = {
        key: str(data_file(getattr(recipe.prepare, key), ("prepare", key))) for key in ("prompts", "heldout")
    }
    prepare.run(prepare.PrepareInputs(), recipe.prepare.model_copy(update=files), folder)


def training_of(settings: DistillSettings, work: Path, folder: Path, *, warm: Path | None) -> Training:
    """Return a training that begins with the prepared student, or goes on where the one in `warm` stopped."""
    from ammd.distill.staged import read_cuts
    from ammd.distill.training import Training

    prepared = work / "prepared"
    training = Training(
        prepared=prepared,
        student=(warm or prepared) / "student",
        settings=settings,
        curves=folder / "curves.jsonl",
        cuts=None if warm else read_cuts(prepared),
    )
    if warm:
        training.skip_texts(settings.warm.steps)
    return training


def last_step(folder: Path) -> dict[str, Any]:
    """Return the last line of a folder's curves."""
    last: dict[str, Any] = json.loads((folder / "curves.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    return last


def spread(values: list[float]) -> float | None:
    """Return the standard deviation, or None for a single value."""
    return statistics.stdev(values) if len(values) > 1 else None


def run(main: Callable[[], None]) -> None:
    """Run a script; errors end it with their message."""
    try:
        main()
    except AmmdError as error:
        sys.exit(f"{error}\nhint: {error.hint}" if error.hint else str(error))
    except subprocess.CalledProcessError:
        sys.exit(1)  # the part has said why
