"""What cannot be made of an encoder-decoder, refused before any work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ammd.errors import ExportError

from .schemes import GGUF_SCHEMES, Scheme
from .settings import ExportSettings

_MADE = (*GGUF_SCHEMES, Scheme.ONNX_STANDARD_FP32, Scheme.ONNX_STANDARD_INT8)


def check_encoder_decoder(config: Mapping[str, Any], settings: ExportSettings) -> None:
    """Refuse what cannot be made, if the checkpoint is an encoder-decoder.

    Raises:
        ExportError: Names the scheme or the setting.
    """
    if not config.get("is_encoder_decoder"):
        return
    kind = config.get("model_type")
    for scheme in settings.schemes:
        if scheme not in _MADE:
            raise ExportError(
                f"`{scheme.value}` cannot be made of an encoder-decoder (`{kind}`)",
                hint="set `export.schemes` to GGUF schemes, `onnx-standard-fp32` or `onnx-standard-int8`",
            )
    for name, value in (("mixed", settings.mixed), ("imatrix", settings.imatrix)):
        if value is not None:
            raise ExportError(
                f"`export.{name}` is measured on models with a decoder alone, this one has an encoder (`{kind}`)",
                hint="leave it out; GGUF types without it can be had",
            )
    if settings.onnx.ort_format:
        raise ExportError(
            f"`export.onnx.ort_format` writes models of one graph, an encoder-decoder (`{kind}`) has three",
            hint="leave it out",
        )
