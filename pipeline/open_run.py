"""A run in progress: its folder, held by a lock, and the one way in which a stage is made.

`OpenRun.stage` looks a stage up by its key, else takes it from a sibling run, else checks that disk and
memory suffice, runs it in a fresh process and publishes what it wrote. A stage is in the folder whole or not
at all, so the next `ammd run` goes on from the last one that is there; one that can goes on within itself.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ammd.artifact import Manifest, hash_file, hash_text, list_files, publish, staging_folder
from ammd.event_log import EventLog
from ammd.machine import library_versions
from ammd.settings import Settings

from .cache import (
    Done,
    Input,
    clean_stage,
    find_stage,
    hash_inputs,
    paths_of,
    resume_folder,
    reuse_sibling,
    run_lock,
    stage_key,
)
from .launch import run_in_child
from .recipe import Recipe
from .recipe_document import DATA_FILES, SOURCES, TEXTS, data_file
from .resources import check_room, count_parameters, estimate_need
from .run_log import LOG_NAME, run_log
from .stages import Stage
from .toml_text import write_toml

log = logging.getLogger("ammd.pipeline")
RECIPE_NAME = "recipe.toml"
# Written from all stages together, and out of date as soon as one is made anew.
SUMMARY_NAME = "summary.json"
REPORT_NAME = "report.html"
CARD_NAME = "MODEL_CARD.md"
_RUN_ID_DIGITS = 8


@dataclass(slots=True, kw_only=True)
class OpenRun:
    """One run while its lock is held. `done` fills up as stages are found or made."""

    recipe: Recipe
    folder: Path
    stages: Mapping[str, Stage]
    events: EventLog
    done: dict[str, Done] = field(default_factory=dict)

    def stage(self, name: str, settings: Settings, **inputs: Input) -> Done:
        """Return the stage `name`, found in the cache or made now.

        Raises:
            AmmdError: It cannot be made.
        """
        stage = self.stages[name]
        target = self.folder / name
        hashes = hash_inputs(inputs)
        given, keyed = _localize(name, settings)
        key = stage_key(stage, settings=keyed, inputs=hashes)
        done = find_stage(target, key) or reuse_sibling(target, key)
        if done is None:
            self._check_room(stage)
            log.info("%s …", name)
            clean_stage(target, key=key)
            paths = paths_of(inputs)
            resume = resume_folder(target, key)
            if stage.resumable:
                paths["resume"] = str(resume)
            for stale in (SUMMARY_NAME, REPORT_NAME, CARD_NAME):
                (self.folder / stale).unlink(missing_ok=True)
            with staging_folder(target) as staging:
                self.events.write("stage_started", stage=name, folder=staging.name)
                outcome = run_in_child(
                    stage, inputs=paths, settings=given, folder=staging, log=self.folder / LOG_NAME
                )
                manifest = Manifest(
                    stage=name,
                    key=key,
                    files=list_files(staging),
                    settings=keyed,
                    inputs=hashes,
                    versions=library_versions(),
                    results=outcome.results,
                    seed=getattr(settings, "seed", self.recipe.seed),
                    **outcome.costs,
                )
                publish(staging, target, manifest)
            shutil.rmtree(resume, ignore_errors=True)
            done = Done(folder=target, manifest=manifest, cached=False)
        log.info("%s: %s", name, _cost(done))
        self.events.write(
            "stage_found" if done.cached else "stage_finished",
            stage=name,
            seconds=done.manifest.seconds,
            peak_rss_bytes=done.manifest.peak_rss_bytes,
        )
        self.done[name] = done
        return done

    def _check_room(self, stage: Stage) -> None:
        """Check room for this stage and, as far as the teacher's size is known, for all that follow."""
        teacher = self.folder / "prepare" / "teacher"
        source = str(teacher) if "prepare" in self.done else self.recipe.prepare.teacher
        names = list(self.stages)
        ahead = [self.stages[name] for name in names[names.index(stage.name) :]]
        need = estimate_need(
            ahead,
            parameters=count_parameters(source) or 0,
            processes={"distill": self.recipe.distill.processes},
        )
        check_room(need, folder=self.folder)


@contextmanager
def open_run(recipe: Recipe, *, runs_dir: Path, stages: Mapping[str, Stage]) -> Iterator[OpenRun]:
    """Take the run folder of `recipe`, write its resolved recipe there, and hold it.

    Raises:
        ArtifactError: Another process holds it, or it cannot be written.
    """
    folder = run_folder(recipe, runs_dir=runs_dir)
    with run_lock(folder):
        (folder / RECIPE_NAME).write_text(write_toml(recipe.model_dump(mode="json")), encoding="utf-8")
        log.info("run %s/%s in `%s`", recipe.name, folder.name, folder)
        with run_log(folder, run=f"{recipe.name}/{folder.name}", stages=stages) as events:
            yield OpenRun(recipe=recipe, folder=folder, stages=stages, events=events)


def run_folder(recipe: Recipe, *, runs_dir: Path) -> Path:
    """Return where the run of this resolved recipe lies: `<name>/<8 hex digits of its hash>`.

    A budget has no part in it: it makes nothing, so that another one judges the same run.
    """
    text = recipe.model_dump_json(exclude={"budget"})
    return runs_dir / recipe.name / hash_text(text)[:_RUN_ID_DIGITS]


def _localize(section: str, settings: Settings) -> tuple[Settings, dict[str, Any]]:
    """Return the settings with real file paths for the stage, and with content hashes for the key."""
    given = settings.model_dump(mode="json")
    keyed = settings.model_dump(mode="json")
    for path in DATA_FILES:
        if path[0] == section and (name := given.get(path[1])):
            file = data_file(name, path)
            given[path[1]], keyed[path[1]] = str(file), f"sha256:{hash_file(file)}"
    for path in SOURCES:
        if path[0] == section:
            _pin_source(keyed, path[1:])
    for name, table, key in TEXTS:
        if section == name and (found := keyed[table]):
            texts = map(Path, found[key])  # how one is read hangs on its suffix
            found[key] = [f"sha256:{hash_file(text)}{text.suffix}" for text in texts]
    return type(settings).model_validate(given), keyed


def _pin_source(keyed: dict[str, Any], path: tuple[str, ...]) -> None:
    """Replace a local model's path by the hash of its files; hub: and pypi: names pin what they can."""
    *tables, key = path
    table: Any = keyed
    for name in tables:
        table = table.get(name) if isinstance(table, dict) else None
    source = table.get(key) if isinstance(table, dict) else None
    if not isinstance(source, str) or source.startswith(("hub:", "pypi:")):
        return
    model = Path(source)
    table[key] = "sha256:" + (
        hash_text("\n".join(f"{record.path}\0{record.sha256}" for record in list_files(model)))
        if model.is_dir()
        else hash_file(model)
    )


def _cost(done: Done) -> str:
    cost = f"{done.manifest.seconds:.1f} s, {done.manifest.peak_rss_bytes / 2**30:.2f} GiB"
    return f"there already ({cost} when made)" if done.cached else cost
