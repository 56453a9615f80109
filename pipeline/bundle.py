"""A release: a run's chosen files as a folder and an archive, with all that is needed to trust them.

    NAME-TARGET/
      manifest.json            hashes, origin, proofs, numbers, verdict; manifest.json.minisig if signed
      MODEL_CARD.md            for readers
      LICENSE                  the base model's, if that is Apache-2.0
      sbom.cdx.json            CycloneDX: models, data, and the libraries that made them
      models/                  each GGUF, and each ONNX folder whole, as their loaders take them and as they were proven

The same run gives the same bytes: nothing of this machine or this moment goes in. The time that a component list has
to have is the run's, or that of SOURCE_DATE_EPOCH.
"""

from __future__ import annotations

import datetime
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ammd.artifact import (
    MANIFEST_NAME,
    hash_file,
    list_files,
    remove_partial,
    replace,
    staging_folder,
    whole_record,
    write_json,
)
from ammd.durable import writing_to
from ammd.errors import ArtifactError, RecipeError
from ammd.machine import check_free_disk

from .bundle_archive import SUFFIX, write_archive
from .bundle_choice import Target, budget_of, choose
from .bundle_manifest import build_manifest, is_bundle
from .cache import Done, run_lock
from .license_note import license_text
from .model_card import read_student_config, render_card
from .run_folder import CARD_NAME
from .runs import read_finished
from .sbom import SBOM_NAME, write_sbom
from .signature import read_secret_key, sign
from .summary import build_summary

RESULT_SCHEMA = "ammd.release/1"
EPOCH_VARIABLE = "SOURCE_DATE_EPOCH"
_MODELS, _LICENSE = "models", "LICENSE"


def make_bundle(
    run: Path,
    *,
    target: Target,
    names: Sequence[str] = (),
    out: Path | None = None,
    key: Path | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Write a bundle of a finished run and return where it lies and what is in it.

    Args:
        run: Folder of the run.
        target: Where the files are to run; decides which go in and what it is called.
        names: Of the files that go in instead.
        out: Folder to write, its archive beside it; None for `NAME-TARGET` here.
        key: minisign secret key.
        force: Replace a bundle that is there.

    Raises:
        ArtifactError: The run is not finished or was altered, or something lies at `out`.
        RecipeError: The run has no such file, or the key cannot sign.
        ParityError: A file is not proven.
        BudgetExceededError: A file misses its budget.
    """
    secret = read_secret_key(key) if key else None
    with run_lock(run):
        recipe, done = read_finished(run)
        summary = build_summary(recipe, run, done)
        rows, epoch = choose(summary, target, names), epoch_of(summary)
        top = f"{recipe.name}-{target.value}"
        folder = (out or Path(top)).resolve()
        archive = folder.with_name(folder.name + SUFFIX) if folder.name else folder
        _check_places(folder, archive, rows, force=force)
        with staging_folder(folder) as staging, staging_folder(archive) as packed:
            whole = packed / archive.name
            with writing_to(folder.parent):
                paths = _copy_models(rows, staging)
                _describe(summary, done, rows=rows, paths=paths, target=target, folder=staging, epoch=epoch)
                if secret:
                    sign(staging / MANIFEST_NAME, secret)
                write_archive(staging, whole, top=top, epoch=epoch)
            replace(staging, folder)
            replace(whole, archive)
    return {
        "schema": RESULT_SCHEMA,
        "path": str(folder),
        "archive": str(archive),
        "archive_bytes": archive.stat().st_size,
        "archive_sha256": hash_file(archive),
        "signed": secret is not None,
        "files": [asdict(record) for record in list_files(folder)],
    }


def epoch_of(summary: Mapping[str, Any]) -> int:
    """Return the time of a bundle in seconds: SOURCE_DATE_EPOCH, else when the last file was measured, else 0.

    Raises:
        RecipeError: The variable is no such number.
    """
    text = os.environ.get(EPOCH_VARIABLE)
    if text is None:
        found = [row["bench"].get("measured_at") for row in summary["artifacts"] if row["bench"]]
        moments = [int(datetime.datetime.fromisoformat(one).timestamp()) for one in found if one]
        return max(moments, default=0)
    if not text.isascii() or not text.isdigit() or int(text) >= 1 << 33:  # what a tar can hold
        raise RecipeError(f"{EPOCH_VARIABLE} is `{text}`, which is no time in seconds")
    return int(text)


def _check_places(folder: Path, archive: Path, rows: Sequence[Mapping[str, Any]], *, force: bool) -> None:
    """Check that both may be written and have room, and remove what a killed command left there."""
    for place in (folder, archive):
        if place.exists() and not force:
            raise ArtifactError(
                f"`{place}` is there already",
                hint="`--force` replaces it, `-o` names another",
                path=str(place),
            )
    if folder.exists() and not is_bundle(folder):
        raise ArtifactError(
            f"`{folder}` is no bundle, and is not replaced",
            hint="`-o` names another folder",
            path=str(folder),
        )
    need = 2 * sum(row["bytes"] for row in rows)
    check_free_disk(folder.parent, need_bytes=need, purpose=f"bundle `{folder.name}` with its archive")
    for place in (folder, archive):
        remove_partial(place)


def _copy_models(rows: Sequence[Mapping[str, Any]], staging: Path) -> dict[str, str]:
    """Copy each model and return where it lies, by name.

    Raises:
        ArtifactError: What was copied is not what was proven.
    """
    paths = {}
    for row in rows:
        source = Path(row["path"])
        place = staging / _MODELS / source.name
        place.parent.mkdir(exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, place, copy_function=shutil.copyfile)
        else:
            shutil.copyfile(source, place)
        if (found := whole_record(place).sha256) != row["sha256"]:
            raise ArtifactError(
                f"`{source}` was altered: its sha256 is not the one in the run's records",
                path=str(source),
                expected=row["sha256"],
                found=found,
            )
        paths[row["name"]] = f"{_MODELS}/{source.name}"
    return paths


def _describe(
    summary: Mapping[str, Any],
    done: Mapping[str, Done],
    *,
    rows: Sequence[Mapping[str, Any]],
    paths: Mapping[str, str],
    target: Target,
    folder: Path,
    epoch: int,
) -> None:
    """Write card, licence, component list and manifest beside the models."""
    budget = budget_of(summary, {row["name"] for row in rows})
    manifest = build_manifest(summary, done, target=target.value, rows=rows, paths=paths, budget=budget)
    card = render_card(
        {**summary, "artifacts": rows},
        student_config=read_student_config(done["distill"].folder / "student"),
        paths=paths,
    )
    (folder / CARD_NAME).write_text(card, encoding="utf-8")
    if text := license_text((summary["origin"] or {}).get("base_model")):
        (folder / _LICENSE).write_text(text, encoding="utf-8")
    write_sbom(folder / SBOM_NAME, manifest, files=list_files(folder), epoch=epoch)
    write_json(folder / MANIFEST_NAME, {**manifest, "files": [asdict(one) for one in list_files(folder)]})
