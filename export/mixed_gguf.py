"""A GGUF under a budget: the type of each tensor chosen by what it costs the model."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ammd.errors import ExportError
from ammd.machine import available_cores

from .captured import run_module
from .gguf_contents import read_contents, read_matrices
from .quantize_gguf import quantize_gguf
from .settings import MixedSettings

TYPES = ("Q2_K", "Q3_K", "IQ4_XS", "Q4_K", "Q5_K", "Q6_K", "Q8_0")
_BASE = "Q4_K_M"  # of the file's name for itself; every matrix is overridden
_MORE_METADATA_BYTES = 2048  # at most, for what the file says of quantizer and importance matrix


def write_mixed_gguf(
    checkpoint: Path,
    target: Path,
    *,
    f16: Path,
    settings: MixedSettings,
    texts: Sequence[Path],
    imatrix: Path | None,
    metadata: Mapping[str, str],
) -> tuple[Mapping[str, str], dict[str, Any]]:
    """Choose and write.

    Args:
        checkpoint: The folder that `f16` was made from.
        target: The file to write.
        f16: The checkpoint's F16 GGUF.
        settings: The budget.
        texts: To measure on.
        imatrix: An importance matrix to quantize with.
        metadata: What the file says of itself beside what `f16` does.

    Returns:
        What the quantizer meant where it had to store another type, and how the choice came about: how many tensors
        have each type, the expected and the measured KL a token.

    Raises:
        ExportError: Nothing fits the budget, or llama.cpp or torch cannot do it.
    """
    contents = read_contents(f16, meant={})
    matrix_bytes = sum(int(tensor.n_bytes) for tensor in read_matrices(f16))
    rest = f16.stat().st_size - matrix_bytes + _MORE_METADATA_BYTES  # header, vocabulary, vectors
    limit: int | None = None
    if settings.size is not None:
        limit = settings.size_bytes - rest
    elif settings.bits is not None:
        limit = int(settings.bits / 8 * contents.weights) - (contents.weight_bytes - matrix_bytes)
    with tempfile.TemporaryDirectory(prefix="ammd-mixed-", dir=target.parent) as scratch:
        candidates = {}
        for kind in TYPES:
            path = Path(scratch) / f"{kind}.gguf"
            quantize_gguf(f16, path, type_name=_BASE, imatrix=imatrix, overrides={"": kind})
            candidates[kind] = str(path)
        request = {
            "checkpoint": str(checkpoint),
            "f16": str(f16),
            "candidates": candidates,
            "texts": [str(path) for path in texts],
            "bytes": limit,
            "max_kl": settings.max_kl,
            "target": str(Path(scratch) / "plan.json"),
            "threads": available_cores(),
        }
        run_module(
            "ammd.export.sensitivity",
            [json.dumps(request)],
            task=f"choose the types of `{checkpoint}`'s tensors",
        )
        plan = json.loads((Path(scratch) / "plan.json").read_text(encoding="utf-8"))
    overrides = {f"^{name.replace('.', '[.]')}$": kind for name, kind in plan["types"].items()}
    meant = quantize_gguf(
        f16, target, type_name=_BASE, imatrix=imatrix, overrides=overrides, metadata=metadata
    )
    if settings.size is not None and target.stat().st_size > settings.size_bytes:
        raise ExportError(
            f"`{target.name}` takes {target.stat().st_size} bytes, the budget is {settings.size_bytes}"
        )
    counts = {kind: list(plan["types"].values()).count(kind) for kind in TYPES}
    choice = {
        "budget": settings.model_dump(exclude_none=True),
        "tensors": {kind: count for kind, count in counts.items() if count},
        "expected_kl_nats": plan["loss"],
        "measured_kl_nats": plan["measured_kl_nats"],
    }
    return meant, choice
