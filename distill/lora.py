"""Students that are trained through low-rank adapters (Hu 2021, arXiv 2106.09685), by peft.

An adapter adds  alpha / rank * B A  to a frozen matrix; A is random, B starts at zero, so training begins at the
student itself. Every linear layer of the network has one, the head has none: it is the embedding in most small
models. What is saved, and what samples texts, is a plain network with the sums in its matrices.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .lora_settings import Lora


def add_adapters(model: PreTrainedModel, settings: Lora, *, seed: int) -> None:
    """Freeze the weights of `model` and add adapters, in place."""
    from peft import LoraConfig, inject_adapter_in_model

    model.requires_grad_(False)
    config = LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, target_modules=_linear_layers(model), bias="none"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model)


def merged_layers(model: PreTrainedModel) -> dict[int, nn.Linear]:
    """Return, by the id of each layer with an adapter, a plain layer that computes the same. Float32."""
    # By the name under which peft's layers keep their adapters: importing it takes a second, which most never need.
    return {id(layer): _merged(layer) for layer in model.modules() if hasattr(layer, "lora_A")}


def _linear_layers(model: PreTrainedModel) -> list[str]:
    head = model.get_output_embeddings()
    return [
        name for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head
    ]


@torch.no_grad()
def _merged(layer: Any) -> nn.Linear:
    plain = layer.get_base_layer()
    merged = nn.Linear(plain.in_features, plain.out_features, bias=plain.bias is not None, device="meta")
    merged.weight = nn.Parameter(plain.weight + layer.get_delta_weight("default"), requires_grad=False)
    if plain.bias is not None:
        merged.bias = nn.Parameter(plain.bias, requires_grad=False)
    return merged
