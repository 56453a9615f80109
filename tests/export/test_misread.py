"""What llama.cpp would compute wrongly is refused before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ammd.errors import ExportError
from ammd.export.misread import check_gguf


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
    ],
)
def test_settings_that_a_gguf_cannot_hold(
    tmp_path: Path, config: dict[str, Any], refused: str | None
) -> None:
    if refused is None:
        check_gguf(tmp_path, config)
        return
    with pytest.raises(ExportError, match=refused) as caught:
        check_gguf(tmp_path, config)
    assert "ONNX" in caught.value.hint
