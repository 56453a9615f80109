"""What an ONNX file says of itself: the `metadata_props` of its model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def state_metadata(path: Path, metadata: Mapping[str, str]) -> None:
    """Write these and nothing else; weights outside of the file stay as they are."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.save(model, path)
