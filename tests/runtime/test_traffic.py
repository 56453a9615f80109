"""What a token moves, against the tensors that lie in the files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from ammd.errors import ArtifactError, EngineError
from ammd.runtime.traffic import traffic_of


def numbers(checkpoint: Path) -> dict[str, int]:
    from safetensors.numpy import load_file

    return {name: tensor.size for name, tensor in load_file(checkpoint / "model.safetensors").items()}


def test_tied_table_is_read_once_as_the_head(tiny_gguf: Path, tiny_checkpoint: Path) -> None:
    found, held = traffic_of(tiny_gguf), numbers(tiny_checkpoint)
    assert found.parameters == sum(held.values())
    assert found.weight_bytes_per_token == 4 * sum(held.values())
    assert found.body_parameters == sum(held.values()) - held["model.embed_tokens.weight"]
    assert found.bits_per_weight == 32
    assert found.has_k_quants is False


def test_table_beside_a_head_is_only_looked_into(
    build_checkpoint: Callable[..., Path], make_gguf: Callable[..., Path], tmp_path: Path
) -> None:
    checkpoint = build_checkpoint(tmp_path / "untied", tied=False)
    found, held = traffic_of(make_gguf(checkpoint, tmp_path / "untied.gguf")), numbers(checkpoint)
    row = 64  # its hidden size
    unread = held["model.embed_tokens.weight"] - row
    assert found.weight_bytes_per_token == 4 * (sum(held.values()) - unread)
    assert found.body_parameters == found.parameters - held["lm_head.weight"]


def test_cache_grows_by_what_the_configuration_says(
    tiny_gguf: Path, tiny_onnx: Path, tiny_checkpoint: Path
) -> None:
    config = json.loads((tiny_checkpoint / "config.json").read_text())
    numbers_a_token = (
        2
        * config["num_hidden_layers"]
        * config["num_key_value_heads"]
        * (config["hidden_size"] // config["num_attention_heads"])
    )
    assert traffic_of(tiny_gguf).kv_bytes_per_token == 2 * numbers_a_token  # float16
    assert traffic_of(tiny_onnx).kv_bytes_per_token == 4 * numbers_a_token  # float32


def test_both_formats_of_a_model_have_the_same_matrices(tiny_gguf: Path, tiny_onnx: Path) -> None:
    ours, graph = traffic_of(tiny_gguf), traffic_of(tiny_onnx)
    norms = 64 * (2 * 4 + 1)  # two a layer and the last; the graph's are not counted
    assert graph.parameters == ours.parameters - norms
    assert graph.body_parameters == ours.body_parameters - norms
    assert graph.layers == ours.layers == 4
    assert graph.weight_bytes_per_token == pytest.approx(4 * graph.parameters, rel=0.01)  # norms beside them


def test_a_graph_of_standard_operators_counts_the_same(tiny_standard_onnx: Path, tiny_onnx: Path) -> None:
    assert traffic_of(tiny_standard_onnx).parameters == traffic_of(tiny_onnx).parameters


def test_of_experts_those_count_that_a_token_is_sent_to(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "moe.gguf", "llama")
    writer.add_block_count(1)
    writer.add_embedding_length(32)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_expert_count(8)
    writer.add_expert_used_count(2)
    writer.add_tensor("token_embd.weight", np.zeros((10, 32), np.float32))
    writer.add_tensor("blk.0.ffn_up_exps.weight", np.zeros((8, 16, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = traffic_of(tmp_path / "moe.gguf")
    assert found.body_parameters == 2 * 16 * 32
    assert found.weight_bytes_per_token == 4 * (2 * 16 * 32 + 10 * 32)


def test_what_is_no_file_for_a_device_is_refused(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="is a checkpoint"):
        traffic_of(tiny_checkpoint)
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(40))
    with pytest.raises(ArtifactError, match="is damaged or no GGUF"):
        traffic_of(tmp_path / "bad.gguf")
