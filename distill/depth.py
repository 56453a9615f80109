"""A student that is its teacher with fewer layers.

Block influence (Men et al. 2024, ShortGPT, arXiv 2403.03853): a layer that hardly turns the hidden state, by the
cosine between its input and its output, is the one least missed. It is measured on the training texts; the
first and the last layer always stay, since they translate from and to the vocabulary.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from ammd.errors import DistillError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .batches import Batch


@torch.inference_mode()
def block_influence(model: PreTrainedModel, batch: Batch) -> list[float]:
    """Return how much each layer turns the hidden state: 1 - mean cosine over real tokens, one a layer."""
    output = model.get_decoder()(
        input_ids=batch.token_ids,
        attention_mask=batch.attention_mask,
        output_hidden_states=True,
        use_cache=False,
    )
    mask = batch.attention_mask.bool()
    states = [hidden[mask].float() for hidden in output.hidden_states]
    return [
        float(1 - torch.cosine_similarity(before, after, dim=-1).mean()) for before, after in pairwise(states)
    ]


def layers_of(model: PreTrainedModel) -> torch.nn.ModuleList:
    """Return the layers of `model`.

    Raises:
        DistillError: It keeps them in an unknown place.
    """
    layers = getattr(model.get_decoder(), "layers", None)
    if not isinstance(layers, torch.nn.ModuleList):
        raise DistillError(
            f"cannot cut layers from a `{type(model).__name__}`",
            hint='use `prepare.student` with `kind = "model"`',
        )
    return layers


def check_layers(have: int, layers: int) -> None:
    """Check that a model of `have` layers can be cut to `layers`.

    Raises:
        DistillError: There are fewer, or fewer than two would stay.
    """
    if not 2 <= layers <= have:
        raise DistillError(
            f"a student of `{layers}` layers cannot be cut from a teacher of {have}",
            hint=f"set `prepare.student.layers` between 2 and {have}",
        )


def kept_layers(influence: list[float], layers: int) -> list[int]:
    """Return the indices of the `layers` layers to keep, in order.

    Raises:
        DistillError: More layers are asked for than the teacher has, or fewer than two.
    """
    check_layers(len(influence), layers)
    inner = range(1, len(influence) - 1)
    dropped = set(sorted(inner, key=lambda index: influence[index])[: len(influence) - layers])
    return [index for index in range(len(influence)) if index not in dropped]


def cut_layers(model: PreTrainedModel, kept: list[int]) -> None:
    """Reduce `model`, in place, to the layers `kept`.

    Raises:
        DistillError: The model keeps its layers in an unknown place.
    """
    layers = layers_of(model)
    model.get_decoder().layers = torch.nn.ModuleList(layers[index] for index in kept)
    for index, layer in enumerate(model.get_decoder().layers):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):  # its place in the key-value cache
                module.layer_idx = index
    model.config.num_hidden_layers = len(kept)
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[index] for index in kept]
