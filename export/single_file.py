"""Make one file from one checkpoint: what `ammd export CHECKPOINT --scheme S --out PATH` does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ammd.artifact import remove_partial, replace, staging_folder
from ammd.errors import ArtifactError

from .schemes import Scheme
from .settings import ExportSettings
from .stage import ExportInputs, run


def export_file(checkpoint: Path, scheme: Scheme, *, out: Path, force: bool = False) -> dict[str, Any]:
    """Export `checkpoint` as `scheme` to `out`, whole or not at all.

    Args:
        checkpoint: A folder with config.json, *.safetensors and tokenizer files.
        scheme: What to make.
        out: The GGUF file to write, or the folder for an ONNX model.
        force: Replace what lies at `out`.

    Returns:
        The artifact's facts as in `ammd.export.stage.run`, with `path` being `out`.

    Raises:
        ArtifactError: `out` exists and `force` is not set; or the checkpoint or the disk is at fault.
        FetchError: llama.cpp's source cannot be had.
        ExportError: A converter refuses the checkpoint.
    """
    if out.exists() and not force:
        raise ArtifactError(f"`{out}` is already there", hint="add --force to replace it", path=str(out))
    remove_partial(out)
    settings = ExportSettings(schemes=(scheme,))
    with staging_folder(out) as staging:
        results = run(ExportInputs(checkpoint=checkpoint), settings, staging)
        artifact: dict[str, Any] = results["artifacts"][0]
        replace(staging / artifact["path"], out)
    return artifact | {"path": str(out)}
