"""Whether optimum's ONNX exporter is installed here, with a transformers that it can read."""

from __future__ import annotations

import importlib.metadata

_EXPORTER = "optimum-onnx"
_HINT = "in an environment of its own: pip install 'ammd[optimum]'"


def missing_exporter() -> tuple[str, str] | None:
    """Return why no `onnx-standard` scheme can be made here, and what helps; None where they can."""
    from packaging.requirements import Requirement

    try:
        needed = [Requirement(text) for text in importlib.metadata.requires(_EXPORTER) or []]
        found = importlib.metadata.version("transformers")
    except importlib.metadata.PackageNotFoundError:
        return "the `onnx-standard` schemes need optimum, which is not installed", _HINT
    for one in needed:
        if one.name != "transformers" or (one.marker and not one.marker.evaluate({"extra": ""})):
            continue
        if not one.specifier.contains(found, prereleases=True):
            version = importlib.metadata.version(_EXPORTER)
            return f"optimum-onnx {version} needs transformers {one.specifier}, {found} is installed", _HINT
    return None
