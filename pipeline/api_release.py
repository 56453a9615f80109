"""The functions of `import ammd` about releases; see `api`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from .any_path import AnyPath, as_path
from .bundle import make_bundle
from .bundle_choice import Target
from .bundle_verify import verify_bundle as check_bundle
from .runs import find_run

Document = dict[str, Any]


def bundle(
    run: AnyPath,
    *,
    target: Literal["android", "ios", "desktop"],
    files: Sequence[str] = (),
    out: AnyPath | None = None,
    sign: AnyPath | None = None,
    force: bool = False,
    runs_dir: AnyPath = "runs",
) -> Document:
    """Pack a finished run's proven files for release, as a folder and a `.tar.zst` beside it.

    Args:
        run: A run's folder, NAME/ID, the beginning of an ID, or a NAME that has one run.
        target: Where the files are to run; phones get the 4-bit GGUF and `onnx-int4`, desktops all.
        files: Names of those to take instead.
        out: Folder to write; None takes `NAME-TARGET`.
        sign: minisign secret key; its password is in the variable AMMD_SIGN_PASSWORD.
        force: Replace a bundle that is there.
        runs_dir: Folder of all runs.

    Returns:
        `ammd.release/1`: where folder and archive lie, and the bytes and sha256 of every file.

    Raises:
        ArtifactError: The run is not finished or was altered, or something is in the way.
        ParityError: A file is not proven.
        BudgetExceededError: A file misses its budget.

    Example:
        packed = ammd.bundle(summary["path"], target="desktop", out="release")
        print(packed["archive"], packed["archive_sha256"])
    """
    return make_bundle(
        find_run(str(run), runs_dir=Path(runs_dir)),
        target=Target(target),
        names=files,
        out=as_path(out),
        key=as_path(sign),
        force=force,
    )


def verify_bundle(
    bundle: AnyPath, *, public_key: str | None = None, unpack: AnyPath | None = None
) -> Document:
    """Check that a bundle is what was made: every hash, nothing missing, nothing more.

    Args:
        bundle: Its folder or its `.tar.zst`.
        public_key: minisign key, a file or its line, that has to have signed it.
        unpack: Folder to leave an archive's files in, if all is right.

    Returns:
        `ammd.bundle_check/1`: what it holds, and whether its signature is `valid`, `not checked` or `none`.

    Raises:
        ArtifactError: Anything is not as it was made, or the archive is unsafe to unpack.

    Example:
        found = ammd.verify_bundle(packed["archive"], unpack="unpacked")
        print(found["files"], found["signature"])
    """
    return check_bundle(Path(bundle), public_key=public_key, unpack_to=as_path(unpack))
