"""Checkpoints that a runtime would load without a word and compute wrongly; refused by name before any work."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ammd.errors import ExportError

_GEMMA3_27B_LAYERS = 62  # by which llama.cpp knows the one that scales otherwise (models/gemma3.cpp)
_SMOLLM3_STEP = (
    4  # llama.cpp leaves out the rotary embedding in each layer of this multiple (models/smollm3.cpp)
)


def check_gguf(checkpoint: Path, config: Mapping[str, Any]) -> None:
    """Refuse what llama.cpp's GGUF has no place for, and its code takes for granted.

    Raises:
        ExportError: Names the setting.
    """
    kind = config.get("model_type")
    if kind in ("gemma3", "gemma3_text"):
        scale, size = config.get("query_pre_attn_scalar"), config.get("head_dim")
        if config.get("num_hidden_layers") == _GEMMA3_27B_LAYERS:
            size = config["hidden_size"] // config["num_attention_heads"]
        if scale is not None and size is not None and scale != size:
            raise _refusal(checkpoint, "query_pre_attn_scalar", scale, f"llama.cpp scales queries by {size}")
    if kind == "smollm3":
        layers = config.get("no_rope_layers")
        expected = [int((layer + 1) % _SMOLLM3_STEP != 0) for layer in range(len(layers or ()))]
        if layers and list(map(int, layers)) != expected:
            raise _refusal(
                checkpoint,
                "no_rope_layers",
                layers,
                f"llama.cpp leaves the rotary embedding out of every {_SMOLLM3_STEP}th layer and no other",
            )


def _refusal(checkpoint: Path, key: str, value: object, why: str) -> ExportError:
    return ExportError(
        f"`{checkpoint / 'config.json'}` has {key} = {value}, which no GGUF can say: {why}",
        hint="leave the GGUF schemes out; ONNX files hold it",
        key=key,
    )
