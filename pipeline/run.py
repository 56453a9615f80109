"""The whole path, recipe to report, in one function.

    recipe ─► prepare ─► distill ─► export ─► verify ─► evaluate ─► bench ─► report

Each statement of `run_recipe` is one stage: what it is called, its settings, what it reads. What is the same
for all stages (is it there already, is there room, a fresh process, hashes, publishing) is `OpenRun.stage`.
Files are the contract between stages; nothing else passes from one to the next.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .budget import find_baseline
from .cache import Done, NamedPart, Stated
from .open_run import open_run
from .places import Places, WholeMachine
from .provenance import provenance
from .recipe import Recipe
from .report import publish_report
from .stages import STAGES, Stage
from .summary import build_summary


def run_recipe(
    recipe: Recipe,
    *,
    runs_dir: Path,
    until: str = "report",
    wait: bool = True,
    stages: Mapping[str, Stage] = STAGES,
    places: Places | None = None,
) -> dict[str, Any]:
    """Make every stage of `recipe` that is not there yet and return the run's summary.

    Args:
        recipe: Resolved and checked.
        runs_dir: Folder of all runs; this one lies in `<name>/<run id>`.
        until: `distill` stops when the student is there, `report` goes all the way.
        wait: Wait for another process that works on this run; else refuse.
        stages: Where each stage's code is.
        places: Where and when stages are made; now and here unless told otherwise.

    Raises:
        AmmdError: What a stage could not do; the stages before it are kept.
    """
    find_baseline(recipe.budget, runs_dir=runs_dir)  # a missing one is reported before any work
    places = places or WholeMachine()
    with open_run(recipe, runs_dir=runs_dir, stages=stages, places=places, wait=wait) as run:
        prepared = run.stage("prepare", recipe.prepare)
        distilled = run.stage("distill", recipe.distill, prepared=prepared.whole)
        if until == "distill":
            return build_summary(recipe, run.folder, run.done)

        teacher, student = prepared.part("teacher"), distilled.part("student")
        heldout = prepared.part("heldout.jsonl")
        # Only files that are measured on texts are made anew for other texts.
        texts = {"texts": prepared.part("train.jsonl")} if recipe.export.reads_texts else {}
        origin = Stated(value=asdict(provenance(recipe.name, prepared.manifest, distilled.manifest)))
        exported = run.stage("export", recipe.export, checkpoint=student, provenance=origin, **texts)
        files = exported_files(exported)
        run.stage("verify", recipe.verify, checkpoint=student, heldout=heldout, artifacts=files)

        checkpoints = (
            NamedPart(name="teacher", part=teacher),
            NamedPart(name="student-pruned", part=prepared.part("student")),
            NamedPart(name="student-warm", part=distilled.part("warm")),
            NamedPart(name="student", part=student),
        )
        every_model = checkpoints + files
        run.stage("evaluate", recipe.evaluate, teacher=teacher, heldout=heldout, models=every_model)
        # The warm student has the final one's shape, so its speed and memory are its own; the pruned one too,
        # unless it is pruned in stages, and then nobody is to use it.
        run.stage("bench", recipe.bench, artifacts=(checkpoints[0], checkpoints[3], *files))

        with places.looking("report"):  # drawing takes a core, which a measurement beside it would feel
            return publish_report(recipe, run.folder, run.done)


def exported_files(exported: Done) -> tuple[NamedPart, ...]:
    """Return what the export stage wrote, in its order."""
    rows = exported.manifest.results["artifacts"]
    return tuple(NamedPart(name=row["name"], part=exported.part(row["path"])) for row in rows)
