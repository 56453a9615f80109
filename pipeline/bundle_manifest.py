"""`manifest.json` of a bundle: every file's hash, and for each model where it comes from and what was measured of it.

All of it is in the run's own records. Models and data are named as they may be told to others, by hash and last part of
their path, never by a place on this machine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ammd.artifact import MANIFEST_NAME, FileRecord
from ammd.errors import ArtifactError

from .cache import Done
from .license_note import license_lines
from .model_card import LOADERS
from .recipe_document import BUILTIN, data_name

SCHEMA = "ammd.bundle/1"
_LARGEST_BYTES = 16 << 20


class BundleManifest(BaseModel):
    """What is relied on when a bundle is read; there is more in it."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    schema_name: Literal["ammd.bundle/1"] = Field(alias="schema")
    name: str
    target: str
    files: tuple[FileRecord, ...]


def build_manifest(
    summary: Mapping[str, Any],
    done: Mapping[str, Done],
    *,
    target: str,
    rows: Sequence[Mapping[str, Any]],
    paths: Mapping[str, str],
    budget: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return the document but for its `files`.

    Args:
        summary: Of the run.
        done: Its stages.
        target: Where the files are to run.
        rows: Of the artifacts that are in the bundle.
        paths: Where each of them lies in it, by name.
        budget: The verdict on them.
    """
    return {
        "schema": SCHEMA,
        "name": summary["recipe"]["name"],
        "target": target,
        "run": summary["run"],
        "models": [_model(row, paths[row["name"]]) for row in rows],
        "budget": budget,
        "origin": summary["origin"],
        "data": training_data(summary, done),
        "licences": _licences(summary),
        "training": summary["training"],
        "tuning": summary["tuning"],
        "vocabulary": summary["vocabulary"],
        "match": summary["match"],
        "imatrix": summary["imatrix"],
        "stages": [_stage(item) for item in done.values()],
        "measured_on": summary["measured_on"],
        "validity_rule": summary["validity_rule"],
        "versions": summary["versions"],
    }


def read_bundle_manifest(folder: Path) -> BundleManifest:
    """Return the manifest of a bundle's folder.

    Raises:
        ArtifactError: There is none, or it is damaged or of another version.
    """
    path = folder / MANIFEST_NAME
    try:
        if (size := path.stat().st_size) > _LARGEST_BYTES:
            raise ArtifactError(f"`{path}` has {size} bytes, more than any manifest", path=str(path))
        return BundleManifest.model_validate_json(path.read_bytes())
    except FileNotFoundError as exc:
        raise ArtifactError(f"`{folder}` is no bundle: it has no {MANIFEST_NAME}", path=str(path)) from exc
    except OSError as exc:
        raise ArtifactError(f"cannot read `{path}`: {exc.strerror}", path=str(path)) from exc
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ArtifactError(
            f"`{path}` is no manifest of a bundle: {place + ': ' if place else ''}{first['msg']}",
            path=str(path),
        ) from exc


def is_bundle(path: Path) -> bool:
    """Tell whether `path` is meant as a bundle: an archive of ours by its name, or a folder with such a manifest."""
    if path.name.endswith(".tar.zst"):
        return True
    try:
        document = json.loads((path / MANIFEST_NAME).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(document, dict) and str(document.get("schema", "")).startswith("ammd.bundle/")


def training_data(summary: Mapping[str, Any], done: Mapping[str, Done]) -> list[dict[str, Any]]:
    """Return role, name and hash of each data file that student or judgement come from."""
    hashed = done["prepare"].manifest.settings
    given = summary["recipe"]["prepare"]
    return [
        {
            "role": role,
            "name": (name := data_name(given, role)),
            "sha256": hashed[role].removeprefix("sha256:"),
            "license": "apache-2.0" if name == BUILTIN else None,
        }
        for role in ("prompts", "heldout")
    ]


def _model(row: Mapping[str, Any], path: str) -> dict[str, Any]:
    facts = ("name", "format", "scheme", "bytes", "sha256", "bits_per_weight", "fallbacks", "choice")
    return {
        "path": path,
        "loader": LOADERS[row["format"]],
        **{key: row[key] for key in facts if key in row},
        "proofs": _plain(row["parity"]),
        "quality": _plain(row["quality"]),
        "bench": _plain(row["bench"]),
    }


def _plain(record: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return a record's own numbers and words, without its samples."""
    if record is None:
        return None
    return {key: value for key, value in record.items() if not isinstance(value, dict | list) or not value}


def _licences(summary: Mapping[str, Any]) -> list[str]:
    origin = summary["origin"] or {}
    prompts = data_name(summary["recipe"]["prepare"], "prompts")
    return license_lines(base=origin.get("base_model"), teacher=origin.get("teacher"), prompts=prompts)


def _stage(item: Done) -> dict[str, Any]:
    manifest = item.manifest
    return {
        "stage": manifest.stage,
        "key": manifest.key,
        "settings": manifest.settings,
        "inputs": manifest.inputs,
        "outputs_sha256": manifest.content_hash,
        "seconds": manifest.seconds,
        "peak_rss_bytes": manifest.peak_rss_bytes,
    }
