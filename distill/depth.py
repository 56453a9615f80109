"""A student that is its teacher with fewer layers.

Block influence (Men et al. 2024, ShortGPT, arXiv 2403.03853): a layer that hardly turns the hidden state, by the
cosine between its input and its output, is the one least missed. It is measured on the training texts; the
first and the last layer always stay, since they translate from and to the vocabulary.

An encoder-decoder has two stacks of layers, each cut by its own layers' influence. T5 computes the bias of relative
positions in the first layer of a stack for all of its layers, so whichever is first after a cut has it.
"""

from __future__ import annotations

from enum import StrEnum
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch

from ammd.encoder_decoder import is_encoder_decoder, start_token_id
from ammd.errors import DistillError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .batches import Batch


class Stack(StrEnum):
    """A stack of layers."""

    DECODER = "decoder"  # the only one of a decoder-only model
    ENCODER = "encoder"


@torch.inference_mode()
def block_influence(model: PreTrainedModel, batch: Batch, *, stack: Stack = Stack.DECODER) -> list[float]:
    """Return how much each layer turns the hidden state: 1 - mean cosine over real tokens, one a layer."""
    if is_encoder_decoder(model):
        states, mask = _read_stack(model, batch, stack)
    else:
        mask = batch.attention_mask.bool()
        states = model.get_decoder()(
            input_ids=batch.token_ids,
            attention_mask=batch.attention_mask,
            output_hidden_states=True,
            use_cache=False,
        ).hidden_states
    kept = [hidden[mask].float() for hidden in states]
    return [
        float(1 - torch.cosine_similarity(before, after, dim=-1).mean()) for before, after in pairwise(kept)
    ]


def layers_of(model: PreTrainedModel, stack: Stack = Stack.DECODER) -> torch.nn.ModuleList:
    """Return the layers of `model`.

    Raises:
        DistillError: It keeps them in an unknown place.
    """
    module = _module(model, stack)
    layers = getattr(module, _attribute(model), None)
    if not isinstance(layers, torch.nn.ModuleList):
        raise DistillError(
            f"cannot cut layers from a `{type(model).__name__}`",
            hint='use `prepare.student` with `kind = "model"`',
        )
    return layers


def stacks_of(model: PreTrainedModel) -> tuple[Stack, ...]:
    """Return the stacks that `model` has, in the order in which a prompt goes through them."""
    return (Stack.ENCODER, Stack.DECODER) if is_encoder_decoder(model) else (Stack.DECODER,)


def layer_counts_of(model: PreTrainedModel) -> dict[str, int]:
    """Return how many layers the config of `model` says it has, as facts of a run."""
    if not is_encoder_decoder(model):
        return {"layers": model.config.num_hidden_layers}
    return {"layers": model.config.num_decoder_layers, "encoder_layers": model.config.num_layers}


def check_layers(have: int, layers: int, *, key: str = "layers") -> None:
    """Check that a stack of `have` layers can be cut to `layers`, as `prepare.student.<key>` wants.

    Raises:
        DistillError: There are fewer, or fewer than two of them would stay.
    """
    if layers != have and not 2 <= layers < have:
        what = "layers" if key == "layers" else "encoder layers"
        raise DistillError(
            f"a student of `{layers}` {what} cannot be cut from a teacher of {have}",
            hint=f"set `prepare.student.{key}` between 2 and {have}",
        )


def kept_layers(influence: list[float], layers: int) -> list[int]:
    """Return the indices of the `layers` layers to keep, in order.

    Raises:
        DistillError: More layers are asked for than the teacher has, or fewer than two of them.
    """
    check_layers(len(influence), layers)
    inner = range(1, len(influence) - 1)
    dropped = set(sorted(inner, key=lambda index: influence[index])[: len(influence) - layers])
    return [index for index in range(len(influence)) if index not in dropped]


def cut_layers(model: PreTrainedModel, kept: list[int], *, stack: Stack = Stack.DECODER) -> None:
    """Reduce a stack of `model`, in place, to the layers `kept`.

    Raises:
        DistillError: The model keeps its layers in an unknown place.
    """
    layers = layers_of(model, stack)
    cut: Any = torch.nn.ModuleList(layers[index] for index in kept)
    setattr(_module(model, stack), _attribute(model), cut)
    for index, layer in enumerate(cut):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):  # its place in the key-value cache
                module.layer_idx = index
    if is_encoder_decoder(model):
        _move_position_bias(layers[0], cut[0])
    _tell_config(model, stack, len(kept))
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[index] for index in kept]


def _read_stack(
    model: PreTrainedModel, batch: Batch, stack: Stack
) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """Return the hidden states between the layers of one stack of an encoder-decoder, and where its tokens are real."""
    source_ids, source_mask = batch.sources
    encoded = model.get_encoder()(input_ids=source_ids, attention_mask=source_mask, output_hidden_states=True)
    if stack is Stack.ENCODER:
        return encoded.hidden_states, source_mask.bool()
    target_ids, predicts = batch.decoder_inputs(start_token_id(model))
    decoded = model.get_decoder()(
        input_ids=target_ids,
        encoder_hidden_states=encoded.last_hidden_state,
        encoder_attention_mask=source_mask,
        output_hidden_states=True,
        use_cache=False,
    )
    return decoded.hidden_states, predicts


def _module(model: PreTrainedModel, stack: Stack) -> Any:
    return model.get_encoder() if stack is Stack.ENCODER else model.get_decoder()


def _attribute(model: PreTrainedModel) -> str:
    return "block" if is_encoder_decoder(model) else "layers"


def _move_position_bias(old: Any, new: Any) -> None:
    """Give the first T5 layer of a stack the bias of the one that was first; those of UMT5 each have their own."""
    source, target = old.layer[0].SelfAttention, new.layer[0].SelfAttention
    if not target.has_relative_attention_bias:
        target.relative_attention_bias = source.relative_attention_bias
        target.has_relative_attention_bias = True


def _tell_config(model: PreTrainedModel, stack: Stack, layers: int) -> None:
    if not is_encoder_decoder(model):
        model.config.num_hidden_layers = layers
    elif stack is Stack.ENCODER:
        model.config.num_layers = model.get_encoder().config.num_layers = layers
    else:  # the decoder's own copy of the config has its number in the place of the encoder's
        model.config.num_decoder_layers = model.get_decoder().config.num_layers = layers
