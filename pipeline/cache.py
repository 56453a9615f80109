"""The stage cache: a stage is made once for one key, kept whole, and checked byte by byte before it is used.

The key hashes everything that decides a stage's output: the code version of the stage, its settings, the
content of its inputs (files of earlier stages, data files) and the versions of the libraries that compute it.
A stage is looked for in the run's own folder, then in sibling runs of the same recipe name, from where it is
hard-linked: recipes that differ in a late stage share the early ones and no disk is spent twice. A stage that says of
itself that a part of it failed is kept for whoever wants to look, and made anew by the next run.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from ammd.artifact import (
    FAILED_PARTS,
    MANIFEST_NAME,
    Manifest,
    hash_records,
    hash_text,
    link_or_copy,
    load_manifest,
    remove_all_partial,
    replace,
    staging_folder,
)
from ammd.errors import ArtifactError
from ammd.folder_lock import folder_lock

from .stages import Stage

log = logging.getLogger("ammd.pipeline")
_RESUME = ".resume-"
RESUME_GLOB = f"{_RESUME}*"
_RESUME_DIGITS = 16  # of the key, in a folder's name


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Something that a finished stage left: the input of later ones."""

    path: Path
    hash: str  # of the content, so that a stage made anew with the same bytes makes no other stage stale


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedPart:
    """A part under the name that tables and later stages call it by."""

    name: str
    part: Part


@dataclass(frozen=True, slots=True, kw_only=True)
class Stated:
    """An input that is no file: facts, handed over as they are."""

    value: Mapping[str, Any]  # JSON values

    @property
    def hash(self) -> str:
        """Of the content."""
        return hash_text(json.dumps(self.value, sort_keys=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A finished stage in its run folder."""

    folder: Path
    manifest: Manifest
    cached: bool  # found, not made

    @property
    def whole(self) -> Part:
        """The stage's folder with all its files."""
        return Part(path=self.folder, hash=self.manifest.content_hash)

    def part(self, name: str) -> Part:
        """Return the file or folder `name` of this stage.

        Raises:
            ArtifactError: The stage holds no such file or folder.
        """
        records = tuple(
            record
            for record in self.manifest.files
            if record.path == name or record.path.startswith(f"{name}/")
        )
        if not records:
            raise ArtifactError(f"stage `{self.manifest.stage}` left no `{name}`", path=str(self.folder))
        return Part(path=self.folder / name, hash=hash_records(records))


Input = Part | Stated | tuple[NamedPart, ...]
Inputs = Mapping[str, Input]


def stage_key(stage: Stage, *, settings: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """Return the hash of everything that decides the output of `stage`."""
    versions = {name: _version(name) for name in sorted(stage.libraries)}
    document = {
        "stage": stage.name,
        "code": stage.code_version,
        "settings": settings,
        "inputs": dict(inputs),
        "versions": versions,
    }
    return hash_text(json.dumps(document, sort_keys=True))


def hash_inputs(inputs: Inputs) -> dict[str, str]:
    """Return one content hash for each input, names of named parts included."""
    hashes = {}
    for name, value in inputs.items():
        if isinstance(value, Part | Stated):
            hashes[name] = value.hash
        else:
            hashes[name] = hash_text("\n".join(f"{item.name}\0{item.part.hash}" for item in value))
    return hashes


def paths_of(inputs: Inputs) -> dict[str, Any]:
    """Return the JSON form of a stage's inputs record."""
    paths: dict[str, Any] = {}
    for name, value in inputs.items():
        if isinstance(value, Stated):
            paths[name] = dict(value.value)
        elif isinstance(value, Part):
            paths[name] = str(value.path)
        else:
            paths[name] = [{"name": item.name, "path": str(item.part.path)} for item in value]
    return paths


def find_stage(folder: Path, key: str) -> Done | None:
    """Return the stage in `folder` if it has this key and every byte is as its manifest says.

    A stage with altered, truncated or missing files, or with parts that failed, is reported and counts as absent.
    """
    found = _peek_key(folder)
    if found is None and folder.exists():
        log.warning("%s: making it anew, because its manifest is missing or unreadable", folder.name)
    if found != key:
        return None
    try:
        return Done(folder=folder, manifest=_load_whole(folder), cached=True)
    except ArtifactError as exc:
        log.warning("%s: making it anew, because %s", folder.name, exc)
        return None


def _load_whole(folder: Path) -> Manifest:
    """Return the verified manifest of a stage all of whose parts could be made.

    Raises:
        ArtifactError: A file is not what it was, or a part had failed.
    """
    manifest = load_manifest(folder)
    if failed := manifest.results.get(FAILED_PARTS):
        parts = ", ".join(f"`{part}`" for part in failed) if isinstance(failed, list) else "a part"
        raise ArtifactError(f"{parts} failed in it", path=str(folder))
    return manifest


def reuse_sibling(folder: Path, key: str) -> Done | None:
    """Hard-link a stage of the same key from another run of this recipe's name; None if there is none.

    The linked files are verified before they are published, so a sibling that changes meanwhile is no danger.
    """
    name = folder.name
    for sibling in sorted(folder.parent.parent.glob(f"*/{name}")):
        if sibling == folder or _peek_key(sibling) != key:
            continue
        with staging_folder(folder) as staging:
            try:
                shutil.copytree(sibling, staging, copy_function=_link, dirs_exist_ok=True)
                manifest = _load_whole(staging)
            except (ArtifactError, OSError) as exc:
                log.warning("%s: not taken from `%s`, because %s", name, sibling.parent.name, exc)
                continue
            replace(staging, folder)
        log.info("%s: taken from run `%s`", name, sibling.parent.name)
        return Done(folder=folder, manifest=manifest, cached=True)
    return None


@contextmanager
def run_lock(folder: Path, *, wait: bool = False) -> Iterator[int]:
    """Hold a run folder until this process and those that it hands the descriptor to have ended, however.

    What killed runs left half-written there is removed.

    Args:
        folder: Of the run; it is made if it is not there.
        wait: Wait for another `ammd` that works there; else refuse.

    Raises:
        ArtifactError: Another `ammd` works in the folder, or it cannot be written.
    """
    with folder_lock(folder, wait=wait) as descriptor:
        remove_all_partial(folder)
        yield descriptor


def clean_stage(folder: Path, *, going_on: str | None = None) -> None:
    """Remove what killed runs kept for going on within a stage, but for what the key `going_on` goes on from.

    The caller holds the run's lock.
    """
    for kept in folder.parent.glob(f"{_resume_prefix(folder)}*"):
        if going_on is None or kept != resume_folder(folder, going_on):
            shutil.rmtree(kept, ignore_errors=True)


def resume_folder(folder: Path, key: str) -> Path:
    """Return where the stage in `folder` keeps what it goes on from if it is killed while making `key`."""
    return folder.with_name(f"{_resume_prefix(folder)}{key[:_RESUME_DIGITS]}")


def track_folder(run: Path, key: str) -> Path:
    """Return where trackers write of a training; another one in the same run, of other data say, gets another."""
    return run / "track" / key[:_RESUME_DIGITS]


def _resume_prefix(folder: Path) -> str:
    return f"{_RESUME}{folder.name}-"


def _peek_key(folder: Path) -> str | None:
    """Return the key that a stage's manifest claims, without checking files."""
    try:
        document = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    key = document.get("key") if isinstance(document, dict) else None
    return key if isinstance(key, str) else None


def _link(source: str, target: str) -> None:
    if Path(source).name == MANIFEST_NAME:
        shutil.copyfile(source, target)  # small, and a rewrite in one run must not reach the other
        return
    link_or_copy(source, target)


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
