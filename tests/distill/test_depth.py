"""Cutting a student from its teacher."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig

from ammd.distill.batches import build_batch
from ammd.distill.checkpoint import load_model, load_tokenizer, save_checkpoint
from ammd.distill.depth import block_influence, cut_layers, kept_layers
from ammd.distill.policy import Policy
from ammd.errors import DistillError

BATCH = build_batch([((1, 20, 30), (40, 2)), ((1, 50), (60, 70, 2))])


def test_the_least_influential_inner_layers_go() -> None:
    influence = [0.9, 0.3, 0.05, 0.2, 0.01, 0.4, 0.001]
    assert kept_layers(influence, 4) == [0, 1, 5, 6]  # first and last stay whatever they do
    assert kept_layers(influence, 7) == list(range(7))


@pytest.mark.parametrize("layers", [1, 8])
def test_an_impossible_number_of_layers_is_refused(layers: int) -> None:
    with pytest.raises(DistillError, match=f"a student of `{layers}` layers cannot be cut"):
        kept_layers([0.1] * 7, layers)


def test_a_layer_that_passes_its_input_on_has_no_influence(tiny_checkpoint: Path) -> None:
    model = load_model(tiny_checkpoint, dtype=torch.float32)
    layer = model.base_model.layers[2]
    with torch.no_grad():
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    influence = block_influence(model, BATCH)
    assert len(influence) == 4
    assert abs(influence[2]) < 1e-6
    assert min(influence[0], influence[1], influence[3]) > 1e-4


def test_cut_student_survives_saving_and_equals_the_teacher_without_the_idle_layer(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    model = load_model(tiny_checkpoint, dtype=torch.float32)
    layer = model.base_model.layers[2]
    with torch.no_grad():
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
        expected = model(input_ids=BATCH.token_ids).logits
    cut_layers(model, [0, 1, 3])
    save_checkpoint(model, load_tokenizer(tiny_checkpoint), tmp_path / "cut")
    student = load_model(tmp_path / "cut", dtype=torch.float32)
    assert student.config.num_hidden_layers == 3
    with torch.inference_mode():
        torch.testing.assert_close(student(input_ids=BATCH.token_ids).logits, expected)


def test_gemma_whose_decoder_goes_by_another_name_is_cut_and_read() -> None:
    types = ["sliding_attention", "full_attention"] * 2
    config = Gemma3TextConfig(
        vocab_size=128,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        sliding_window=8,
        layer_types=types,
    )
    model = AutoModelForCausalLM.from_config(config)
    kept = kept_layers(block_influence(model, BATCH), 3)
    cut_layers(model, kept)
    assert model.config.layer_types == [types[index] for index in kept]
    logits = model(input_ids=BATCH.token_ids, attention_mask=BATCH.attention_mask).logits
    policy = Policy(model)
    expected = logits[BATCH.state_mask]
    assert torch.allclose(policy.forward(BATCH) @ policy.head.T, expected, atol=1e-5)
