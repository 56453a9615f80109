"""Is a bundle what it was when it was made? Every hash, nothing more, nothing less, and whose signature it bears."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ammd.archive import Names
from ammd.artifact import (
    MANIFEST_NAME,
    check_files,
    remove_partial,
    replace,
    staging_folder,
)
from ammd.errors import ArtifactError, RecipeError
from ammd.scratch import scratch_folder

from .bundle_archive import SUFFIX, unpack_archive
from .bundle_manifest import BundleManifest, read_bundle_manifest
from .signature import check_signature, read_public_key, signature_of

RESULT_SCHEMA = "ammd.bundle_check/1"


def verify_bundle(
    bundle: Path, *, public_key: str | None = None, unpack_to: Path | None = None
) -> dict[str, Any]:
    """Check a bundle's folder or archive and return what it holds.

    Args:
        bundle: To check.
        public_key: minisign public key, a file or its base64 line; with one, a signature has to be there.
        unpack_to: Folder to leave an archive's files in once they are right.

    Raises:
        ArtifactError: A byte, a file or the signature is not what it has to be; or `unpack_to` is there.
        RecipeError: `public_key` is none, or a folder is to be unpacked.
    """
    if not bundle.name.endswith(SUFFIX):
        if unpack_to:
            raise RecipeError(f"`{bundle}` is no archive, there is nothing to unpack")
        return _verify_folder(bundle, public_key) | {"path": str(bundle.resolve())}
    if unpack_to is None:
        with scratch_folder() as folder:
            unpack_archive(bundle, folder)
            return _verify_folder(folder, public_key) | {"path": str(bundle.resolve())}
    if unpack_to.exists():
        raise ArtifactError(f"`{unpack_to}` is there already", path=str(unpack_to))
    remove_partial(unpack_to)
    with staging_folder(unpack_to) as staging:
        unpack_archive(bundle, staging)
        found = _verify_folder(staging, public_key)
        replace(staging, unpack_to)
    return found | {"path": str(unpack_to.resolve())}


def _verify_folder(folder: Path, public_key: str | None) -> dict[str, Any]:
    key = read_public_key(public_key) if public_key else None  # a wrong one is refused before any work
    if not folder.is_dir():
        raise ArtifactError(f"no bundle at `{folder}`", path=str(folder))
    path = folder / MANIFEST_NAME
    manifest = read_bundle_manifest(folder)
    comment = check_signature(path, key) if key else None
    _check_names(manifest, folder)
    check_files(folder, manifest.files)
    signed = signature_of(path).is_file()
    return {
        "schema": RESULT_SCHEMA,
        "name": manifest.name,
        "target": manifest.target,
        "files": len(manifest.files),
        "bytes": sum(record.bytes for record in manifest.files),
        "signature": "valid" if key else "not checked" if signed else "none",
        "trusted_comment": comment,
    }


def _check_names(manifest: BundleManifest, folder: Path) -> None:
    """Check that the folder holds the named files and its own two, each once, and nothing else."""
    names = Names()
    for record in manifest.files:
        names.claim(record.path, holder=folder / MANIFEST_NAME)
    own = {MANIFEST_NAME, signature_of(Path(MANIFEST_NAME)).name}
    known = {record.path for record in manifest.files} | own
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_dir() or path.is_file()):
            raise ArtifactError(f"`{name}` in `{folder}` is a link or a device", path=str(path))
        if path.is_file() and name not in known:
            raise ArtifactError(f"`{name}` in `{folder}` is in no manifest", path=str(path))


def describe(found: Mapping[str, Any]) -> str:
    """Return one sentence on a bundle that is right."""
    signature = {
        "valid": ", signature valid",
        "not checked": ", signature not checked",
        "none": ", not signed",
    }
    return (
        f"{found['name']} for {found['target']}: {found['files']} files, {found['bytes']:,} bytes, "
        f"all as they were made{signature[found['signature']]}"
    )
