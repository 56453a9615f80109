"""Make room: which run folders may go, what that really frees, and their removal.

Nothing but run folders is removed, none while a process works in it, none that a reference (`ammd compare
--set-baseline`) names, and none that is reached through a symbolic link. Files that are shared with runs that stay
(hard links of stages) free nothing, and are not counted. A folder is renamed before it is emptied, so that a killed
prune leaves no half a run; the next one removes what is left. The history keeps what it knows of a pruned run.
"""

from __future__ import annotations

import datetime
import logging
import os
import re
import shutil
import stat
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ammd.errors import ArtifactError, RecipeError
from ammd.folder_lock import folder_lock, is_locked

from .cache import RESUME_GLOB
from .history import mark_pruned, refresh
from .history_file import open_history
from .history_query import select_runs
from .run_folder import run_name
from .runs import find_run, referred_runs

log = logging.getLogger("ammd.pipeline")
PRUNE_SCHEMA = "ammd.prune/1"
_DOOMED = ".pruned-"  # before the name of a run's folder while it is emptied
_AGE = re.compile(r"(\d+)([hdw])", re.ASCII)
_HOURS = {"h": 1, "d": 24, "w": 168}
_BLOCK_BYTES = 512  # in which the system counts what a file takes
_LEFTOVERS = (RESUME_GLOB, ".partial-*")  # of stages that were cut off: snapshots, and what was half-written


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Which runs go: all that are named, or all, as far as they meet every other rule."""

    runs: tuple[str, ...] = ()  # as users name them
    keep: int | None = None  # the newest of each recipe's name stay
    older_than: datetime.timedelta | None = None  # since their last attempt began
    unfinished: bool = False  # only those that are not finished
    snapshots: bool = False  # only what finished runs no longer need to go on from; the runs stay


@dataclass(frozen=True, slots=True, kw_only=True)
class Doomed:
    """A run of which something is to go."""

    run: str
    state: str
    started: float | None  # Unix seconds
    paths: tuple[Path, ...]  # its folder, or folders in it


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to go, and what that frees."""

    doomed: tuple[Doomed, ...]
    kept: dict[str, str]  # runs that would go, and why they stay
    freed_bytes: dict[str, int]  # by run: once it goes and those before it have gone

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return sum(self.freed_bytes.values())


def read_age(text: str) -> datetime.timedelta:
    """Return an age such as `12h`, `30d` or `4w`.

    Raises:
        RecipeError: It is none.
    """
    found = _AGE.fullmatch(text.strip())
    if found is None or int(found[1]) > 100_000:
        raise RecipeError(f"`{text}` is no age", hint="hours, days or weeks: `12h`, `30d`, `4w`")
    return datetime.timedelta(hours=int(found[1]) * _HOURS[found[2]])


def plan_prune(runs_dir: Path, rules: Rules) -> Plan:
    """Return what these rules would remove.

    Raises:
        RecipeError: There is no rule.
        ArtifactError: A run that is named is not there, or the history cannot be used.
    """
    if rules == Rules():
        raise RecipeError(
            "`ammd runs prune` needs to be told what may go",
            hint="name runs, or give `--keep`, `--older-than`, `--unfinished` or `--snapshots`",
        )
    named = {_inside(find_run(text, runs_dir=runs_dir), runs_dir) for text in rules.runs}
    with open_history(runs_dir) as connection:
        refresh(connection, runs_dir)
        rows = [row for row in select_runs(connection).rows if row["state"] not in {"gone", "pruned"}]
    rows = [row for row in rows if not named or row["run"] in named]
    rows = list(_meeting(rules, rows))
    referred = {_inside(folder, runs_dir): name for name, folder in referred_runs(runs_dir)}
    doomed, kept = [], {}
    for row in rows:
        folder = runs_dir / row["run"]
        paths = tuple(_leftovers(folder)) if rules.snapshots else (folder,)
        if not paths:
            continue
        if why := _why_kept(folder, referred=None if rules.snapshots else referred.get(row["run"])):
            kept[row["run"]] = why
            continue
        doomed.append(Doomed(run=row["run"], state=row["state"], started=row["started"], paths=paths))
    return Plan(doomed=tuple(doomed), kept=kept, freed_bytes=_freed(doomed))


def prune_runs(runs_dir: Path, plan: Plan) -> list[str]:
    """Remove what the plan says, and return the runs that had something removed; who has begun to work since stays."""
    removed, gone = [], []
    for entry in plan.doomed:
        folder = runs_dir / entry.run
        if not folder.is_dir():
            continue
        try:
            with folder_lock(folder, wait=False):
                # Once it has another name, no one finds it; the lock's file goes with it.
                doomed = [_rename(path) if path == folder else path for path in entry.paths]
        except ArtifactError as exc:
            log.warning("%s stays: %s", entry.run, exc)
            continue
        for path in doomed:
            shutil.rmtree(path, ignore_errors=True)
        removed.append(entry.run)
        if folder in entry.paths:
            gone.append(entry.run)
    for left in runs_dir.glob(f"*/{_DOOMED}*"):
        if not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
    with open_history(runs_dir) as connection:
        mark_pruned(connection, gone)
        refresh(connection, runs_dir)
    return removed


def document_of(plan: Plan, removed: Sequence[str]) -> dict[str, Any]:
    """Return the plan, and what of it was done, as JSON values."""
    return {
        "schema": PRUNE_SCHEMA,
        "freed_bytes": sum(plan.freed_bytes[run] for run in removed),
        "freeable_bytes": plan.total_bytes,
        "runs": [
            {
                "run": entry.run,
                "state": entry.state,
                "bytes": plan.freed_bytes[entry.run],
                "removed": entry.run in removed,
            }
            for entry in plan.doomed
        ],
        "kept": [{"run": run, "because": why} for run, why in plan.kept.items()],
    }


def _meeting(rules: Rules, rows: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the runs that meet all rules; `rows` are in order, the newest first."""
    of_name: Counter[str] = Counter()
    now = time.time()
    for row in rows:
        name = row["run"].partition("/")[0]
        of_name[name] += 1
        is_young = rules.older_than is not None and (
            row["started"] is None or now - row["started"] < rules.older_than.total_seconds()
        )
        is_finished = row["state"] == "finished"
        if (rules.keep is not None and of_name[name] <= rules.keep) or is_young:
            continue
        if (rules.unfinished and is_finished) or (rules.snapshots and not is_finished):
            continue
        yield row


def _why_kept(folder: Path, *, referred: str | None) -> str | None:
    """Return why a run may not be touched, None if it may."""
    if folder.is_symlink() or folder.parent.is_symlink():
        return "it lies elsewhere, behind a symbolic link"
    if is_locked(folder):
        return "a process works in it"
    return f"`{referred}` stands for it" if referred else None


def _inside(folder: Path, runs_dir: Path) -> str:
    """Return a run's name, of a folder that lies in `runs_dir`.

    Raises:
        ArtifactError: It lies elsewhere.
    """
    if folder.resolve().parent.parent != runs_dir.resolve():
        raise ArtifactError(
            f"run `{folder}` does not lie in `{runs_dir}`", hint="name its folder of runs with `--runs-dir`"
        )
    return run_name(folder.resolve())


def _leftovers(folder: Path) -> Iterator[Path]:
    for pattern in _LEFTOVERS:
        yield from (path for path in sorted(folder.glob(pattern)) if path.is_dir() and not path.is_symlink())


def _freed(doomed: Iterable[Doomed]) -> dict[str, int]:
    """Return what each run's removal frees: the blocks of files whose last name goes with it."""
    names: defaultdict[tuple[int, int], int] = defaultdict(int)  # of each file, gone so far
    freed = {}
    for entry in doomed:
        freed[entry.run] = 0
        for path in entry.paths:
            for facts in _walk(path):
                file = facts.st_dev, facts.st_ino
                names[file] += 1
                is_folder = stat.S_ISDIR(facts.st_mode)
                if is_folder or names[file] == facts.st_nlink:
                    freed[entry.run] += facts.st_blocks * _BLOCK_BYTES
    return freed


def _walk(path: Path) -> Iterator[os.stat_result]:
    """Yield the facts of a folder and all that is in it, behind no link."""
    yield path.lstat()
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(Path(entry.path))
            else:
                yield entry.stat(follow_symlinks=False)


def _rename(folder: Path) -> Path:
    target = folder.with_name(f"{_DOOMED}{folder.name}")
    if target.exists():
        shutil.rmtree(target, ignore_errors=True)
    return folder.rename(target)
