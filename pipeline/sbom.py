"""The parts of a bundle as a CycloneDX list: models, the data they come from, and the libraries that made them.

Files of the bundle are components with hashes; each depends on the student, the student on the model its weights came
from, on its teacher and on the data. Libraries are marked as excluded, for they made the files and are not in them.
"""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ammd.artifact import FileRecord, hash_records

if TYPE_CHECKING:
    from cyclonedx.model.component import Component
    from cyclonedx.model.license import License

SBOM_NAME = "sbom.cdx.json"
_NUMBERS = {
    "proofs": ("kl_nats", "top1_agreement"),
    "quality": ("kl_to_teacher_nats", "rouge_l", "repetition", "prompts"),
    "bench": ("decode_tokens_per_s", "ttft_s", "peak_rss_bytes", "threads", "validity"),
}


def write_sbom(path: Path, manifest: Mapping[str, Any], *, files: Sequence[FileRecord], epoch: int) -> None:
    """Write the list of a bundle.

    Args:
        path: To write.
        manifest: Of the bundle.
        files: All that is in it but for this list and the manifest.
        epoch: Its time, in seconds.
    """
    from cyclonedx.model.bom import Bom, BomMetaData
    from cyclonedx.model.tool import ToolRepository
    from cyclonedx.output import make_outputter
    from cyclonedx.schema import OutputFormat, SchemaVersion

    identity = hash_records(tuple(files))
    root = _root(manifest)
    bom = Bom(
        serial_number=uuid.uuid5(uuid.NAMESPACE_OID, identity),
        metadata=BomMetaData(
            component=root,
            tools=ToolRepository(components=[_library("ammd", manifest["versions"]["ammd"], made=False)]),
            timestamp=datetime.datetime.fromtimestamp(epoch, tz=datetime.UTC),
        ),
    )
    models = [_file(model, files, manifest["origin"]) for model in manifest["models"]]
    student, sources = _student(manifest), list(_sources(manifest))
    libraries = [_library(name, version) for name, version in sorted(manifest["versions"].items())]
    for component in (*models, student, *sources, *libraries):
        bom.components.add(component)
    bom.register_dependency(root, models)
    for model in models:
        bom.register_dependency(model, [student])
    bom.register_dependency(student, sources)
    text = make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string(indent=2)
    path.write_text(text + "\n", encoding="utf-8")


def _root(manifest: Mapping[str, Any]) -> Component:
    from cyclonedx.model.component import Component, ComponentType

    return Component(
        name=f"{manifest['name']}-{manifest['target']}",
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref="bundle",
        licenses=_licenses((manifest["origin"] or {}).get("base_model")),
        properties=_properties({"run": manifest["run"], "target": manifest["target"]}),
    )


def _file(model: Mapping[str, Any], files: Sequence[FileRecord], origin: Mapping[str, Any]) -> Component:
    """Return a model of the bundle; the files of a folder are its parts."""
    from cyclonedx.model.component import Component, ComponentType

    place = model["path"]
    parts = [record for record in files if record.path.startswith(f"{place}/")]
    facts = {"path": place, "format": model["format"], "loader": model["loader"], "sha256": model["sha256"]}
    for section, keys in _NUMBERS.items():
        facts |= {
            f"{section}:{key}": value
            for key in keys
            if (value := (model[section] or {}).get(key)) is not None
        }
    return Component(
        name=model["name"],
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=f"model:{model['name']}",
        hashes=None if parts else [_hash(model["sha256"])],
        licenses=_licenses((origin or {}).get("base_model")),
        components=[
            Component(
                name=record.path,
                type=ComponentType.FILE,
                bom_ref=f"file:{record.path}",
                hashes=[_hash(record.sha256)],
            )
            for record in parts
        ],
        properties=_properties(facts),
    )


def _student(manifest: Mapping[str, Any]) -> Component:
    from cyclonedx.model.component import Component, ComponentType

    origin = manifest["origin"]
    return Component(
        name=f"{manifest['name']} (trained checkpoint)",
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref="student",
        version=origin["student_sha256"],
        licenses=_licenses(origin["base_model"]),
        properties=_properties({"recipe_sha256": origin["recipe_sha256"]}),
    )


def _sources(manifest: Mapping[str, Any]) -> Iterator[Component]:
    """Yield what the student comes from: base model and teacher, once where they are one, and data."""
    from cyclonedx.model.component import Component, ComponentScope, ComponentType
    from packageurl import PackageURL

    origin = manifest["origin"]
    known = {role: origin[role] for role in ("base_model", "teacher") if origin[role]}
    is_one = len(known) == 2 and known["base_model"] == known["teacher"]
    if is_one:
        del known["base_model"]
    for role, model in known.items():
        group, _, name = (model["hub_id"] or "").partition("/")
        revision = (model["revision"] or "").removeprefix("commit:") or None
        yield Component(
            name=model["name"],
            type=ComponentType.MACHINE_LEARNING_MODEL,
            bom_ref=role,
            version=model["revision"],
            scope=ComponentScope.EXCLUDED,
            licenses=_licenses(model),
            purl=PackageURL("huggingface", group, name, revision) if name else None,
            properties=_properties(
                {"role": "teacher, base_model" if is_one else role, "source": model["source"]}
            ),
        )
    for data in manifest["data"]:
        yield Component(
            name=data["name"],
            type=ComponentType.DATA,
            bom_ref=f"data:{data['role']}",
            scope=ComponentScope.EXCLUDED,
            hashes=[_hash(data["sha256"])],
            licenses=_licenses({"license": {"id": data["license"]}} if data["license"] else None),
            properties=_properties({"role": data["role"]}),
        )


def _library(name: str, version: str, *, made: bool = True) -> Component:
    from cyclonedx.model.component import Component, ComponentScope, ComponentType
    from packageurl import PackageURL

    return Component(
        name=name,
        type=ComponentType.PLATFORM if name == "python" else ComponentType.LIBRARY,
        bom_ref=f"{'library' if made else 'tool'}:{name}",
        version=version,
        scope=ComponentScope.EXCLUDED if made else None,
        purl=PackageURL("generic" if name == "python" else "pypi", None, name, version),
    )


def _licenses(model: Mapping[str, Any] | None) -> list[License] | None:
    """Return the licence that a model states, as SPDX knows it or by its own name; nothing where it states none."""
    from cyclonedx.model import XsUri
    from cyclonedx.model.license import DisjunctiveLicense
    from cyclonedx.spdx import fixup_id

    stated = (model or {}).get("license")
    if not stated:
        return None
    known = fixup_id(stated["id"])
    link = XsUri(stated["link"]) if stated.get("link") else None
    return [
        DisjunctiveLicense(id=known, url=link)
        if known
        else DisjunctiveLicense(name=stated.get("name") or stated["id"], url=link)
    ]


def _hash(sha256: str) -> Any:
    from cyclonedx.model import HashAlgorithm, HashType

    return HashType(alg=HashAlgorithm.SHA_256, content=sha256)


def _properties(facts: Mapping[str, Any]) -> list[Any]:
    from cyclonedx.model import Property

    return [Property(name=f"ammd:{key}", value=str(value)) for key, value in facts.items()]
