"""Artifacts: folders of files whose bytes are known, published whole or not at all.

A stage writes into a temporary sibling of its folder; `publish` writes the manifest there, flushes
everything to disk and renames the sibling into place. A killed run therefore leaves either the whole
folder or a `.partial-*` sibling that the next run removes: a living process holds its own by a lock on the folder.
`load_manifest` checks every byte on reading.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ammd.errors import ArtifactError

from .durable import (
    TEMPORARY_SUFFIX,
    flush_folder,
    flush_tree,
    make_folder,
    write_fault,
    write_text,
    writing_to,
)

MANIFEST_NAME = "manifest.json"
MANIFEST_SCHEMA = "ammd.manifest/1"
FAILED_PARTS = "failed_parts"
"""Key under which a stage's results list what of it failed: the stage is then shown, and made anew by the next run."""
_TYPES: Mapping[str, tuple[type, ...]] = {  # by what the records' fields are annotated with
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "float | None": (int, float, type(None)),
    "Mapping": (dict,),
    "tuple": (tuple,),
}
_PARTIAL_PREFIX = ".partial-"
_OLD_SUFFIX = "-old"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileRecord:
    """One file of an artifact."""

    path: str  # relative to the artifact's folder, with forward slashes
    bytes: int
    sha256: str  # lower-case hex


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a stage made, from what, and at which cost. Stored as `manifest.json` in its folder."""

    stage: str
    key: str  # hash of the stage's code version, settings and input hashes
    files: tuple[FileRecord, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)  # input name -> content hash
    versions: Mapping[str, str] = field(default_factory=dict)  # library -> version
    results: Mapping[str, Any] = field(default_factory=dict)  # the stage's own numbers, JSON values
    seed: int = 0
    seconds: float = 0.0
    peak_rss_bytes: int = 0
    cpu_seconds: float | None = None  # of the stage's processes and all that they started and waited for
    joules: float | None = None  # of the whole processor meanwhile; None where it does not tell
    schema: str = MANIFEST_SCHEMA

    @property
    def content_hash(self) -> str:
        """One hash over every file's name and bytes: the artifact's identity for later stages."""
        return hash_records(self.files)


def hash_text(text: str) -> str:
    """Return the sha256 of `text` in UTF-8 as lower-case hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def hash_file(path: Path) -> str:
    """Return the sha256 of the file's bytes as lower-case hex.

    Raises:
        ArtifactError: There is no such file, or it cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except (FileNotFoundError, IsADirectoryError) as exc:
        raise ArtifactError(f"no file at `{path}`", path=str(path)) from exc
    except OSError as exc:
        raise ArtifactError(f"cannot read `{path}`: {exc.strerror}", path=str(path)) from exc


def hash_records(records: tuple[FileRecord, ...]) -> str:
    """Return one hash over names and contents, independent of the order of `records`."""
    lines = sorted(f"{record.path}\0{record.sha256}" for record in records)
    return hash_text("\n".join(lines))


def hash_weights(checkpoint: Path) -> str:
    """Return the sha256 of a checkpoint's weights: of its `*.safetensors`, or of names and hashes of several."""
    paths = sorted(checkpoint.glob("*.safetensors"))
    if len(paths) == 1:
        return hash_file(paths[0])
    return hash_records(
        tuple(FileRecord(path=path.name, bytes=path.stat().st_size, sha256=hash_file(path)) for path in paths)
    )


def list_files(folder: Path) -> tuple[FileRecord, ...]:
    """Return a record of every file below `folder` but its manifest, in path order."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file())
    return tuple(
        FileRecord(
            path=path.relative_to(folder).as_posix(),
            bytes=path.stat().st_size,
            sha256=hash_file(path),
        )
        for path in paths
        if path != folder / MANIFEST_NAME
    )


def whole_record(path: Path) -> FileRecord:
    """Return a record of one file, or of a folder as a whole: all bytes in it, and one hash over names and contents.

    Raises:
        ArtifactError: There is nothing.
    """
    if not path.is_dir():
        return FileRecord(path=path.name, sha256=hash_file(path), bytes=path.stat().st_size)
    records = list_files(path)
    return FileRecord(
        path=path.name, sha256=hash_records(records), bytes=sum(record.bytes for record in records)
    )


@contextmanager
def staging_folder(target: Path) -> Iterator[Path]:
    """Give a temporary sibling of `target` to write into; it is removed unless `publish` took it.

    Raises:
        ArtifactError: The parent folder cannot be written.
    """
    with writing_to(target.parent):
        make_folder(target.parent)
        folder = Path(tempfile.mkdtemp(prefix=f"{_PARTIAL_PREFIX}{target.name}-", dir=target.parent))
        folder.chmod(target.parent.stat().st_mode & 0o777)  # mkdtemp's own mode locks other users out
        descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # not on every network file system
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def remove_partial(target: Path) -> None:
    """Delete what killed processes left beside `target`; what a living one is writing stays.

    Where a kill fell between the two renames that replace `target`, the old one is put back first.
    """
    _put_back(_old(target), target)
    for leftover in target.parent.glob(f"{_PARTIAL_PREFIX}{glob.escape(target.name)}-*"):
        if leftover == _old(target) or not _is_held(leftover):
            _remove(leftover)


def remove_all_partial(folder: Path) -> None:
    """Delete what killed processes left half-written in `folder`, which the caller holds by its lock."""
    for leftover in sorted(folder.glob(f"{_PARTIAL_PREFIX}*")):
        if leftover.name.endswith(_OLD_SUFFIX):
            name = leftover.name.removeprefix(_PARTIAL_PREFIX).removesuffix(_OLD_SUFFIX)
            _put_back(leftover, leftover.with_name(name))
        _remove(leftover)
    for leftover in folder.glob(f".*{TEMPORARY_SUFFIX}"):
        _remove(leftover)


def _put_back(old: Path, target: Path) -> None:
    with contextlib.suppress(FileNotFoundError):  # it is not there, or another process has done it
        if not target.exists():
            old.rename(target)


def _is_held(folder: Path) -> bool:
    """Tell whether a living process writes there; where locks on folders are not to be had, one may."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def publish(staging: Path, target: Path, manifest: Manifest) -> Manifest:
    """Write `manifest` into `staging`, flush it to disk and rename it to `target`, replacing it whole.

    Raises:
        ArtifactError: The disk is full or the folder cannot be renamed; `target` is then as it was.
    """
    with writing_to(target.parent):
        write_json(staging / MANIFEST_NAME, asdict(manifest))
    replace(staging, target)
    return manifest


def replace(source: Path, target: Path) -> None:
    """Flush a finished file or folder and move it to `target`, in place of what lies there; both on one disk.

    Raises:
        ArtifactError: It cannot be flushed or moved; `target` is then as it was.
    """
    try:
        flush_tree(source)
        if not target.exists() or (source.is_file() and target.is_file()):
            source.replace(target)
        else:
            _swap(source, target)
        flush_folder(target.parent)
    except OSError as exc:
        raise write_fault(exc, target) from exc


def _swap(source: Path, target: Path) -> None:
    """Rename in two steps, as no system call exchanges folders everywhere; undone if the second fails."""
    old = _old(target)
    _remove(old)
    target.rename(old)
    try:
        source.rename(target)
    except OSError:
        old.rename(target)
        raise
    flush_folder(target.parent)  # or a lost power supply could leave neither
    _remove(old)


def _old(target: Path) -> Path:
    """Return where `target` lies while it is replaced."""
    return target.with_name(f"{_PARTIAL_PREFIX}{target.name}{_OLD_SUFFIX}")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def is_published(folder: Path) -> bool:
    """Tell whether a manifest of ours lies in `folder`; other programs have files of that name, too."""
    try:
        document = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(document, dict) and document.get("schema") == MANIFEST_SCHEMA


def load_manifest(folder: Path, *, suffix: str = "") -> Manifest:
    """Read a folder's manifest and check that its files, or those that end in `suffix`, have the bytes it names.

    Raises:
        ArtifactError: No manifest, another schema, or a file is missing, truncated or altered.
    """
    manifest = read_manifest(folder)
    check_files(folder, tuple(record for record in manifest.files if record.path.endswith(suffix)))
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Read a folder's manifest alone, for what it records; the files may be gone.

    Raises:
        ArtifactError: No manifest, or another schema.
    """
    path = folder / MANIFEST_NAME
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        raise ArtifactError(f"no manifest at `{path}`", path=str(path)) from exc
    except (ValueError, RecursionError) as exc:
        raise ArtifactError(f"manifest `{path}` is not JSON", path=str(path)) from exc
    except OSError as exc:
        raise ArtifactError(f"cannot read `{path}`: {exc.strerror}", path=str(path)) from exc
    found = document.get("schema") if isinstance(document, dict) else None
    if found != MANIFEST_SCHEMA:
        raise ArtifactError(
            f"manifest `{path}` has schema `{found}`, this version reads `{MANIFEST_SCHEMA}`",
            path=str(path),
        )
    try:
        records = tuple(FileRecord(**record) for record in document.pop("files"))
        manifest = Manifest(files=records, **document)
    except (KeyError, TypeError) as exc:
        raise ArtifactError(f"manifest `{path}` lacks or adds a field: {exc}", path=str(path)) from exc
    if wrong := [*_wrong_types(manifest), *(name for record in records for name in _wrong_types(record))]:
        raise ArtifactError(f"manifest `{path}` has a `{wrong[0]}` of a wrong type", path=str(path))
    return manifest


def _wrong_types(record: Manifest | FileRecord) -> Iterator[str]:
    """Yield the fields of a record that was read whose values are not of their types."""
    for one in fields(record):
        value, expected = getattr(record, one.name), _TYPES[str(one.type).partition("[")[0]]
        is_text = not isinstance(value, str) or value == value.encode("utf-8", "ignore").decode()
        if not isinstance(value, expected) or isinstance(value, bool) or not is_text:
            yield one.name


def link_or_copy(source: str, target: str) -> None:
    """Give a finished file a second name; where it cannot be linked, a copy (another disk, no links there)."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def check_files(folder: Path, records: tuple[FileRecord, ...]) -> None:
    """Check that each recorded file lies in `folder` with its size and hash.

    Raises:
        ArtifactError: Names the first file that is missing, of another size, or altered.
    """
    for record in records:
        path = folder / check_relative(record.path)
        try:
            size = path.stat().st_size if path.is_file() else None
        except OSError as exc:  # as of a name that is too long
            raise ArtifactError(f"cannot read `{path}`: {exc.strerror}", path=str(path)) from exc
        if size is None:
            raise ArtifactError(f"`{path}` is missing", path=str(path))
        if size != record.bytes:
            raise ArtifactError(
                f"`{path}` has {size} bytes, its manifest says {record.bytes}",
                path=str(path),
                expected=record.bytes,
                found=size,
            )
        digest = hash_file(path)
        if digest != record.sha256:
            raise ArtifactError(
                f"`{path}` was altered: its sha256 is not the one in its manifest",
                path=str(path),
                expected=record.sha256,
                found=digest,
            )


def is_there(path: Path) -> bool:
    """Tell whether a file or folder is there; one with a name that none can have is not."""
    try:
        return path.exists()
    except OSError:
        return False


def check_relative(name: str) -> str:
    """Return `name` if it stays inside the folder it is joined to (also used for archive members).

    Raises:
        ArtifactError: The name is absolute, empty, climbs out with `..`, has a backslash or colon, which on Windows
            lead elsewhere, or cannot be printed.
    """
    parts = Path(name).parts
    leaves = Path(name).is_absolute() or ".." in parts or "\\" in name or ":" in name
    if not parts or leaves or not name.isprintable():
        shown = name if name.isprintable() else ascii(name)[1:-1]
        raise ArtifactError(f"unsafe file name `{shown}`", path=shown)
    return name


def write_json(path: Path, document: object) -> None:
    """Write `document` as indented JSON, so that a reader never sees half."""
    write_text(path, json.dumps(document, indent=2, default=str) + "\n")
