"""What a runtime would compute wrongly is refused before any work."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ammd.errors import ExportError
from ammd.export.misread import check_gguf, check_onnx


@pytest.mark.parametrize(
    ("config", "refused"),
    [
        ({"model_type": "gemma3_text", "query_pre_attn_scalar": 256, "head_dim": 256}, None),
        (
            {"model_type": "gemma3_text", "query_pre_attn_scalar": 168, "head_dim": 128},
            r"query_pre_attn_scalar = 168, which no GGUF can say: llama\.cpp scales queries by 128",
        ),
        (
            {
                "model_type": "gemma3_text",
                "query_pre_attn_scalar": 168,
                "head_dim": 128,
                "num_hidden_layers": 62,
                "hidden_size": 5376,
                "num_attention_heads": 32,
            },
            None,
        ),
        ({"model_type": "smollm3", "no_rope_layers": [1, 1, 1, 0, 1, 1, 1, 0]}, None),
        ({"model_type": "smollm3"}, None),
        (
            {"model_type": "smollm3", "no_rope_layers": [1, 1, 0, 1]},
            r"no_rope_layers = \[1, 1, 0, 1\], which no GGUF can say",
        ),
        ({"model_type": "llama", "no_rope_layers": [0]}, None),
        (
            {"model_type": "gemma3_text", "layer_types": ["sliding_attention", "full_attention"]},
            r"layer_types = .*: in llama\.cpp every 6th layer sees the whole text and no other",
        ),
        ({"model_type": "gemma3_text", "layer_types": [*["sliding_attention"] * 5, "full_attention"]}, None),
        (
            {"model_type": "mistral", "sliding_window": 4096, "max_position_embeddings": 32768},
            "sliding_window = 4096, which no GGUF can say: .* set max_position_embeddings = 4096",
        ),
        ({"model_type": "mistral", "sliding_window": 4096, "max_position_embeddings": 4096}, None),
        ({"model_type": "mistral", "sliding_window": None, "max_position_embeddings": 4096}, None),
        (
            {"model_type": "phi3", "sliding_window": 2047, "max_position_embeddings": 4096},
            "sliding_window = 2047",
        ),
        ({"model_type": "qwen2", "sliding_window": 512, "max_position_embeddings": 4096}, None),
        (
            {
                "model_type": "qwen2",
                "sliding_window": 512,
                "use_sliding_window": True,
                "layer_types": ["full_attention", "sliding_attention"],
                "max_position_embeddings": 4096,
            },
            "sliding_window = 512",
        ),
        ({"model_type": "gemma3_text", "sliding_window": 512, "max_position_embeddings": 4096}, None),
        ({"model_type": "qwen2", "rope_parameters": {"rope_type": "yarn"}}, None),
        ({"model_type": "llama", "rope_scaling": {"rope_type": "llama3"}}, None),
        ({"model_type": "phi3", "rope_scaling": {"type": "longrope"}}, None),
    ],
)
def test_settings_that_a_gguf_cannot_hold(
    tmp_path: Path, config: dict[str, Any], refused: str | None
) -> None:
    if refused is None:
        check_gguf(tmp_path, config)
        return
    with pytest.raises(ExportError) as caught:
        check_gguf(tmp_path, config)
    assert re.search(refused, f"{caught.value} {caught.value.hint}")
    assert "leave the GGUF schemes out" in caught.value.hint


@pytest.mark.parametrize(
    ("kind", "rope", "in_gguf", "in_onnx"),
    [
        ("llama", {"rope_type": "dynamic"}, False, False),
        ("qwen2", {"rope_type": "llama3"}, False, False),
        ("qwen2", {"type": "yarn"}, True, False),
        ("llama", {"rope_type": "linear"}, True, True),
        ("llama", {"rope_type": "longrope"}, False, False),
        (
            "gemma3_text",
            {"full_attention": {"rope_type": "linear"}, "sliding_attention": {"rope_type": "default"}},
            True,
            True,
        ),
        (
            "gemma3_text",
            {"full_attention": {"rope_type": "default"}, "sliding_attention": {"rope_type": "linear"}},
            False,
            False,
        ),
    ],
)
def test_rotary_scaling_that_would_be_left_out_is_refused(
    tmp_path: Path, kind: str, rope: dict[str, Any], in_gguf: bool, in_onnx: bool
) -> None:
    config = {"model_type": kind, "rope_parameters": rope, "head_dim": 64}
    for check, holds in ((check_gguf, in_gguf), (partial(check_onnx, is_new=True), in_onnx)):
        if holds:
            check(tmp_path, config)
            continue
        with pytest.raises(ExportError, match="has rope_type = ") as caught:
            check(tmp_path, config)
        assert "train with one of: default" in caught.value.hint


@pytest.mark.parametrize(
    ("config", "is_new", "refused"),
    [
        ({"model_type": "phi3", "partial_rotary_factor": 0.75}, True, None),
        ({"model_type": "phi3", "partial_rotary_factor": 0.6}, True, "partial_rotary_factor = 0.6"),
        ({"model_type": "llama", "head_dim": 24}, True, "head_dim = 24, which .* in steps of 16 numbers"),
        (
            {"model_type": "gemma3_text", "use_bidirectional_attention": True},
            True,
            "use_bidirectional_attention = True",
        ),
        ({"model_type": "gemma3_text", "layer_types": ["full_attention"]}, True, None),
        ({"model_type": "gemma3_text", "layer_types": ["full_attention"]}, False, "layer_types = "),
        (
            {
                "model_type": "qwen3",
                "use_sliding_window": True,
                "sliding_window": 8,
                "layer_types": ["full_attention", "sliding_attention"],
            },
            False,
            "this builder gives a window to all layers",
        ),
    ],
)
def test_settings_that_an_onnx_file_cannot_hold(
    tmp_path: Path, config: dict[str, Any], is_new: bool, refused: str | None
) -> None:
    config = {"hidden_size": 256, "num_attention_heads": 4} | config
    if refused is None:
        check_onnx(tmp_path, config, is_new=is_new)
        return
    with pytest.raises(ExportError, match=refused):
        check_onnx(tmp_path, config, is_new=is_new)
