"""What each exported file says of itself: name, versions, licence, and what it was made from, by hash.

The keys are GGUF's `general.*` where it has them, and `ammd.*` for the rest; an ONNX graph has the same ones. All
values are texts that the same checkpoint, recipe and versions give again: no time, no path, no name of a machine. What
is not known is left out.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath, PureWindowsPath

from ammd import __version__
from ammd.artifact import hash_file, hash_weights
from ammd.llama_source import TREE_VARIABLE
from ammd.model_origin import License, ModelOrigin, license_of_folder

from .imatrix import read_imatrix
from .schemes import CONVERTED, GGUF_SCHEMES, ONNX_SCHEMES, STANDARD_SCHEMES, Scheme

BASE_MODEL_PREFIX = "general.base_model."
_HUB = "https://huggingface.co"
_VERSION_DIGITS = 12  # of the student's hash, which stands for a version
_PATH_MARKS = ("/", "\\")
_UNQUANTIZED = (
    Scheme.ONNX_FP32,
    Scheme.ONNX_FP16,
    Scheme.ONNX_STANDARD_FP32,
    Scheme.ONNX_STANDARD_FP16,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """What a run knows of the checkpoint that it exports."""

    name: str  # the recipe's
    recipe_sha256: str  # of the sections that made the student, data files by their content
    base_model: ModelOrigin | None  # whose weights the student began with
    teacher: ModelOrigin | None


def checkpoint_metadata(checkpoint: Path, provenance: Provenance | None) -> dict[str, str]:
    """Return what all files of one checkpoint say; without a provenance, what the checkpoint itself tells."""
    base = provenance.base_model if provenance else None
    student = hash_weights(checkpoint)
    found: dict[str, str | None] = {
        "general.name": provenance.name if provenance else checkpoint.resolve().name,
        "general.version": student[:_VERSION_DIGITS],
        "general.quantized_by": f"ammd {__version__}",
        **_license(base.license if base else license_of_folder(checkpoint)),
        "ammd.version": __version__,
        "ammd.recipe_sha256": provenance.recipe_sha256 if provenance else None,
        "ammd.student_sha256": student,
    }
    if base:
        organization, _, _ = (base.hub_id or "").rpartition("/")
        found |= {
            f"{BASE_MODEL_PREFIX}0.name": base.name,
            f"{BASE_MODEL_PREFIX}0.version": base.revision,
            f"{BASE_MODEL_PREFIX}0.organization": organization,
            f"{BASE_MODEL_PREFIX}0.repo_url": f"{_HUB}/{base.hub_id}" if base.hub_id else None,
        }
    if teacher := provenance.teacher if provenance else None:
        found |= {
            "ammd.teacher_source": teacher.source,
            "ammd.teacher_revision": teacher.revision,
            "ammd.teacher_license": teacher.license.id if teacher.license else None,
        }
    return {key: value for key, value in found.items() if value}


def scheme_metadata(scheme: Scheme, *, imatrix: Path | None = None) -> dict[str, str]:
    """Return what tells a file from the others of its checkpoint: scheme, tools, importance matrix."""
    converter, quantizer = _tools(scheme)
    found = {"ammd.scheme": scheme.value}
    if scheme not in GGUF_SCHEMES or not os.environ.get(TREE_VARIABLE):
        found["ammd.converter"] = (
            converter  # another tree of llama.cpp has a version of its own, unknown here
        )
    if scheme not in (*CONVERTED, *_UNQUANTIZED):
        found["ammd.quantizer"] = quantizer
    if imatrix:
        found["ammd.imatrix_sha256"] = hash_file(imatrix)
        names = dataset_names(read_imatrix(imatrix).datasets)
        found |= {f"ammd.imatrix_dataset.{index}": name for index, name in enumerate(names)}
    return found


def _tools(scheme: Scheme) -> tuple[str, str]:
    """Return what converts and what quantizes, with their versions."""
    if scheme in STANDARD_SCHEMES:
        tools = ("optimum-onnx", "onnxruntime")
    else:
        tools = 2 * ("onnxruntime-genai" if scheme in ONNX_SCHEMES else "llama-cpp-python",)
    converter, quantizer = (f"{tool} {importlib.metadata.version(tool)}" for tool in tools)
    return converter, quantizer


def dataset_names(datasets: tuple[str, ...]) -> tuple[str, ...]:
    """Return what an importance matrix calls its texts, without the folders in which somebody had them."""
    return tuple(
        name
        if name.startswith("sha256:") or not any(mark in name for mark in _PATH_MARKS)
        else (PureWindowsPath(name) if "\\" in name else PurePath(name)).name
        for name in datasets
    )


def _license(found: License | None) -> Mapping[str, str | None]:
    if found is None:
        return {}
    return {
        "general.license": found.id,
        "general.license.name": found.name,
        "general.license.link": found.link,
    }
