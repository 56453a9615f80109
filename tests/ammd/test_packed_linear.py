"""Packed layers against products in float64."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from ammd.encoder_decoder import load_language_model
from ammd.packed_linear import PackedLinear, pack_linears

needs_kernels = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available() or torch.backends.cpu.get_cpu_capability() == "DEFAULT",
    reason="weights are packed where torch has oneDNN for x86",
)


@needs_kernels
@pytest.mark.parametrize("name", ["tiny_checkpoint", "tiny_t5", "tiny_flan_t5"])
def test_a_packed_model_gives_the_logits_of_float64(name: str, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(name)
    exact = load_language_model(folder, dtype=torch.float64)
    model = load_language_model(folder, dtype=torch.float32)
    head = model.get_output_embeddings().weight
    pack_linears(model)
    ids = {"input_ids": torch.tensor([[5, 20, 30, 40], [6, 7, 8, 9]])}
    if model.config.is_encoder_decoder:
        ids["decoder_input_ids"] = torch.tensor([[0, 3], [0, 4]])
    with torch.inference_mode():
        torch.testing.assert_close(
            model(**ids).logits.double(), exact(**ids).logits, rtol=1e-4, atol=1e-5
        )  # float32 carries 7 digits; the sums of some layers lose two
    layers = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear)]
    assert layers
    assert all(type(layer) is PackedLinear for layer in layers)
    assert model.get_output_embeddings().weight is head  # others read it
    assert not head.is_mkldnn


@needs_kernels
@pytest.mark.parametrize("shape", [(1, 40), (3, 0, 40), (2, 7, 40)])
def test_a_bias_is_added_to_any_number_of_rows(shape: tuple[int, ...], tiny_checkpoint: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    model.extra = layer = torch.nn.Linear(40, 24, bias=True)
    rows = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = copy.deepcopy(layer).double()(rows.double())
        pack_linears(model)
        found = model.extra(rows)
    assert type(layer) is PackedLinear
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)  # float32


def test_other_precisions_keep_their_layers(tiny_checkpoint: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.bfloat16)
    pack_linears(model)
    assert not any(isinstance(layer, PackedLinear) for layer in model.modules())
