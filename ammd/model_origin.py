"""What is known of a model beside its weights: name, revision and licence, as its own files state them.

A checkpoint folder states its licence in the front matter of its README.md, a GGUF in its metadata. What nobody
states is None, and stays so in every file and page that is made from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CARD_NAME = "README.md"


@dataclass(frozen=True, slots=True, kw_only=True)
class License:
    """A licence as a model states it."""

    id: str  # as on the Hugging Face hub: SPDX in lower case, or `other`
    name: str | None = None  # of an `other`
    link: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOrigin:
    """A model that something is made of."""

    name: str
    source: str  # as a recipe names it; of a path only the last part, the rest is this machine's
    revision: str | None = None  # `commit:HEX` of a hub repository, `sha256:HEX` of a file or of weights
    hub_id: str | None = None  # ORGANIZATION/NAME on the Hugging Face hub
    license: License | None = None


def license_of_folder(folder: Path) -> License | None:
    """Return the licence that a checkpoint folder's README.md states, or None."""
    from huggingface_hub import metadata_load
    from yaml import YAMLError

    card = folder / CARD_NAME
    if not card.is_file():
        return None
    try:
        found = metadata_load(card)
    except (ValueError, YAMLError):
        return None  # what cannot be read states nothing
    return _license(found or {}, "license", "license_name", "license_link")


def license_of_gguf(values: Mapping[str, Any]) -> License | None:
    """Return the licence among a GGUF's metadata, or None."""
    return _license(values, "general.license", "general.license.name", "general.license.link")


def _license(values: Mapping[str, Any], identifier: str, name: str, link: str) -> License | None:
    found = values.get(identifier)
    if isinstance(found, list):
        found = ",".join(map(str, found))
    if not isinstance(found, str) or not found:
        return None
    more = {key: str(values[key]) for key in (name, link) if values.get(key)}
    return License(id=found, name=more.get(name), link=more.get(link))
