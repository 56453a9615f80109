from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from ammd.errors import ArtifactError
from ammd.safetensors_header import HEAD, is_head_tied, read_headers


def test_headers_of_all_shards_name_what_the_library_stored(tmp_path: Path) -> None:
    save_file({"a": np.zeros((2, 3), np.float32)}, tmp_path / "model-1.safetensors", {"format": "pt"})
    save_file({HEAD: np.zeros((4,), np.float16)}, tmp_path / "model-2.safetensors")
    found = {name: (entry["dtype"], entry["shape"]) for name, entry in read_headers(tmp_path).items()}
    assert found == {"a": ("F32", [2, 3]), HEAD: ("F16", [4])}


@pytest.mark.parametrize(
    ("config", "tensors", "tied"),
    [
        ({"tie_word_embeddings": False}, ["a"], False),
        ({"tie_word_embeddings": True}, ["a", HEAD], True),
        ({}, ["a"], True),
        ({}, ["a", HEAD], False),
        ({}, [], False),  # no weights say nothing
    ],
)
def test_the_configuration_says_whether_the_head_is_tied_or_else_the_weights(
    config: dict[str, Any], tensors: list[str], tied: bool
) -> None:
    assert is_head_tied(config, tensors) is tied


def test_a_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": np.zeros((2, 3), np.float32)}, path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="its header says"):
        read_headers(tmp_path)
