"""A run in progress: its folder, held by a lock, and the one way in which a stage is made.

`OpenRun.stage` looks a stage up by its key, else takes it from a sibling run, else checks that disk and memory
suffice, runs it in a fresh process, where and when `places.py` says, and publishes what it wrote. A stage is in the
folder whole or not at all, so the next `ammd run` goes on from the last one that is there; one that can goes on within
itself.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ammd.artifact import Manifest, hash_file, hash_text, list_files, publish, staging_folder
from ammd.durable import write_text, writing_to
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
    track_folder,
)
from .history import record_begin, record_end
from .places import Place, Places
from .process_group import ProcessGroups
from .recipe import Recipe
from .recipe_document import DATA_FILES, SOURCES, TEXTS, data_file
from .resources import Need, count_parameters, estimate_need
from .run_folder import CARD_NAME, RECIPE_NAME, REPORT_NAME, SUMMARY_NAME, run_name
from .run_log import LOG_NAME, run_log
from .stages import Stage
from .task_inputs import judging_files, key_judging_tasks, key_training_task, training_files
from .toml_text import write_toml
from .watched_files import WatchedFiles

log = logging.getLogger("ammd.pipeline")
_RUN_ID_DIGITS = 8


@dataclass(slots=True, kw_only=True)
class OpenRun:
    """One run while its lock is held. `done` fills up as stages are found or made."""

    recipe: Recipe
    folder: Path
    stages: Mapping[str, Stage]
    events: EventLog
    groups: ProcessGroups
    places: Places
    lock: int  # descriptor by which the stages' processes hold the folder, too
    done: dict[str, Done] = field(default_factory=dict)
    watched: WatchedFiles = field(default_factory=WatchedFiles)

    def stage(self, name: str, settings: Settings, **inputs: Input) -> Done:
        """Return the stage `name`, found in the cache or made now.

        Raises:
            AmmdError: It cannot be made.
        """
        stage = self.stages[name]
        target = self.folder / name
        hashes = hash_inputs(inputs)
        self.watched.add(outside_files(name, settings))
        given, keyed = localize(name, settings)
        key = stage_key(stage, settings=keyed, inputs=hashes)
        with self.places.looking(key):
            done = find_stage(target, key)
            if done is None:
                self._drop_summary()
                done = reuse_sibling(target, key)
        if done is None:
            need = self._need([stage])
            with self.places.working(
                stage, key=key, memory_bytes=need.memory_bytes, groups=self.groups
            ) as place:
                done = reuse_sibling(target, key) if place.made_meanwhile else None
                if done is None:
                    todo = _Todo(stage=stage, key=key, settings=given, keyed=keyed, inputs=inputs)
                    done = self._make(todo, place)
        clean_stage(target)
        self.watched.add(done.folder / record.path for record in done.manifest.files)
        log.info("%s: %s", name, _cost(done))
        self.events.write(
            "stage_found" if done.cached else "stage_finished",
            stage=name,
            seconds=done.manifest.seconds,
            peak_rss_bytes=done.manifest.peak_rss_bytes,
        )
        self.done[name] = done
        return done

    def _make(self, todo: _Todo, place: Place) -> Done:
        """Make a stage in a process of its own and publish it."""
        stage, name, target = todo.stage, todo.stage.name, self.folder / todo.stage.name
        self._check_room(stage)
        log.info("%s …", name)
        clean_stage(target, going_on=todo.key)
        paths = paths_of(todo.inputs)
        if stage.resumable:
            paths["resume"] = str(resume_folder(target, todo.key))
        if stage.tracked and self.recipe.track.trackers:
            paths["track"] = {
                "trackers": list(self.recipe.track.trackers),
                "run": run_name(self.folder),
                "folder": str(track_folder(self.folder, todo.key)),
            }
        with staging_folder(target) as staging:
            self.events.write("stage_started", stage=name, folder=staging.name)
            outcome = place.run(
                stage,
                inputs=paths,
                settings=todo.settings,
                folder=staging,
                log=self.folder / LOG_NAME,
                lock=self.lock,
            )
            self.watched.check(stage=name)
            manifest = Manifest(
                stage=name,
                key=todo.key,
                files=list_files(staging),
                settings=todo.keyed,
                inputs=hash_inputs(todo.inputs),
                versions=library_versions(),
                results=outcome.results,
                seed=getattr(todo.settings, "seed", self.recipe.seed),
                **outcome.costs,
            )
            publish(staging, target, manifest)
        return Done(folder=target, manifest=manifest, cached=False)

    def _drop_summary(self) -> None:
        for stale in (SUMMARY_NAME, REPORT_NAME, CARD_NAME):
            (self.folder / stale).unlink(missing_ok=True)

    def _check_room(self, stage: Stage) -> None:
        """Check room for this stage and, as far as the teacher's size is known, for all that follow."""
        names = list(self.stages)
        ahead = [self.stages[name] for name in names[names.index(stage.name) :]]
        self.places.check_room(self._need(ahead), self.folder)

    def _need(self, stages: Sequence[Stage]) -> Need:
        teacher = self.folder / "prepare" / "teacher"
        source = str(teacher) if "prepare" in self.done else self.recipe.prepare.teacher
        return estimate_need(
            stages,
            parameters=count_parameters(source) or 0,
            processes={"distill": self.recipe.distill.processes},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Todo:
    """A stage that has to be made."""

    stage: Stage
    key: str
    settings: Settings
    keyed: Mapping[str, Any]  # the same, with data by content
    inputs: Mapping[str, Input]


@contextmanager
def open_run(
    recipe: Recipe, *, runs_dir: Path, stages: Mapping[str, Stage], places: Places, wait: bool = True
) -> Iterator[OpenRun]:
    """Take the run folder of `recipe`, write its resolved recipe there, and hold it.

    Args:
        recipe: Resolved and checked.
        runs_dir: Folder of all runs.
        stages: Where each stage's code is.
        places: Where and when stages are made.
        wait: Wait for another process that works on this run; else refuse.

    Raises:
        ArtifactError: Another process holds it, or it cannot be written.
    """
    folder = run_folder(recipe, runs_dir=runs_dir)
    with run_lock(folder, wait=wait) as lock:
        with writing_to(folder):
            write_text(folder / RECIPE_NAME, write_toml(recipe.model_dump(mode="json")))
        log.info("run %s in `%s`", run_name(folder), folder)
        groups = places.enter()
        try:
            with run_log(folder, run=run_name(folder), stages=stages, groups=groups) as events:
                record_begin(folder)
                yield OpenRun(
                    recipe=recipe,
                    folder=folder,
                    stages=stages,
                    events=events,
                    groups=groups,
                    places=places,
                    lock=lock,
                )
        finally:
            record_end(folder)


def run_folder(recipe: Recipe, *, runs_dir: Path) -> Path:
    """Return where the run of this resolved recipe lies: `<name>/<8 hex digits of its hash>`.

    Budget and trackers have no part in it: they make nothing, so that another budget judges the same run.
    """
    text = recipe.model_dump_json(exclude={"budget", "track"})
    return runs_dir / recipe.name / hash_text(text)[:_RUN_ID_DIGITS]


def localize(section: str, settings: Settings) -> tuple[Settings, dict[str, Any]]:
    """Return the settings with real file paths for the stage, and with content hashes for the key."""
    given = settings.model_dump(mode="json")
    keyed = settings.model_dump(mode="json")
    for path in DATA_FILES:
        if path[0] == section and (name := given.get(path[1])):
            file = data_file(name, path)
            given[path[1]], keyed[path[1]] = str(file), f"sha256:{hash_file(file)}"
    key_training_task(keyed, settings)
    key_judging_tasks(keyed, settings)
    for path in SOURCES:
        if path[0] == section:
            _pin_source(keyed, path[1:])
    for name, table, key in TEXTS:
        if section == name and (found := keyed[table]):
            texts = map(Path, found[key])  # how one is read hangs on its suffix
            found[key] = [f"sha256:{hash_file(text)}{text.suffix}" for text in texts]
    return type(settings).model_validate(given), keyed


def outside_files(section: str, settings: Settings) -> list[Path]:
    """Return the user's own files that a stage reads."""
    document = settings.model_dump(mode="json")
    files = [
        data_file(name, path) for path in DATA_FILES if path[0] == section and (name := document.get(path[1]))
    ]
    files += [*training_files(settings), *judging_files(settings)]
    for name, table, key in TEXTS:
        if section == name and (found := document[table]):
            files += map(Path, found[key])
    for path in SOURCES:
        if path[0] == section and (model := _local_source(document, path[1:])):
            files += sorted(model.rglob("*")) if model.is_dir() else [model]
    return files


def _local_source(document: Any, path: tuple[str, ...]) -> Path | None:
    """Return where a model of this machine lies that the settings name; None if they name none or another kind."""
    for name in path:
        document = document.get(name) if isinstance(document, dict) else None
    is_local = isinstance(document, str) and not document.startswith(("hub:", "pypi:"))
    return Path(document) if is_local else None


def _pin_source(keyed: dict[str, Any], path: tuple[str, ...]) -> None:
    """Replace a local model's path by the hash of its files; hub: and pypi: names pin what they can."""
    model = _local_source(keyed, path)
    if model is None:
        return
    *tables, key = path
    table = keyed
    for name in tables:
        table = table[name]
    table[key] = "sha256:" + (
        hash_text("\n".join(f"{record.path}\0{record.sha256}" for record in list_files(model)))
        if model.is_dir()
        else hash_file(model)
    )


def _cost(done: Done) -> str:
    cost = f"{done.manifest.seconds:.1f} s, {done.manifest.peak_rss_bytes / 2**30:.2f} GiB"
    return f"there already ({cost} when made)" if done.cached else cost
