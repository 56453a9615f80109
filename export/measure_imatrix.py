"""An importance matrix from a checkpoint and texts, in a child process of its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ammd.machine import available_cores

from .captured import run_module


def measure_imatrix(
    checkpoint: Path, target: Path, *, gguf: Path, texts: Sequence[Path], max_tokens: int
) -> None:
    """Measure how large the inputs of each matrix are.

    Args:
        checkpoint: A folder that transformers can load.
        target: The file to write, in llama.cpp's form.
        gguf: The checkpoint's F16 GGUF, whose tensor names are used.
        texts: JSONL of conversations, or plain text.
        max_tokens: To read at most.

    Raises:
        ExportError: The texts or the checkpoint cannot be read.
    """
    request = {
        "checkpoint": str(checkpoint),
        "gguf": str(gguf),
        "texts": [str(path) for path in texts],
        "max_tokens": max_tokens,
        "target": str(target),
        "threads": available_cores(),
    }
    run_module(
        "ammd.export.activations",
        [json.dumps(request)],
        task=f"measure an importance matrix of `{checkpoint}`",
    )
