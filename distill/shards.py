"""A student that is divided among the processes: weights, gradients and optimizer states (FSDP, torch's fully_shard).

Each process holds an equal part of every tensor. A layer is put together when it computes and taken apart behind it;
embedding, head and final norm stay together from the forward to the backward pass, since the loss reads the head
between the two. Whoever needs the whole student (its texts, checkpoints, snapshots) gets plain tensors, one after the
other; all processes have to ask for them together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.distributed.tensor import DTensor, distribute_tensor

from .depth import layers_of, stacks_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .fleet import Fleet


def divide(policy: torch.nn.Module, model: PreTrainedModel, *, fleet: Fleet, device: torch.device) -> None:
    """Divide the parameters of `policy`, which wraps `model`, among the processes, in place."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (fleet.size,))
    for stack in stacks_of(model):
        for layer in layers_of(model, stack):
            fully_shard(layer, mesh=mesh)
    fully_shard(policy, mesh=mesh)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return a plain tensor: a divided one is put together, for which all processes have to ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def for_first(tensor: torch.Tensor) -> torch.Tensor:
    """Return a plain tensor, empty on all processes but the first if it had to be put together for it."""
    if not isinstance(tensor, DTensor):
        return tensor
    together = whole(tensor)
    return together.cpu() if tensor.device_mesh.get_rank() == 0 else together.new_empty(0)


def like(tensor: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
    """Return a plain tensor, the same on all processes, divided as `part` is, if that is."""
    if not isinstance(part, DTensor) or tensor.shape != part.shape:
        return tensor
    return distribute_tensor(tensor.to(part.device), part.device_mesh, part.placements)


@torch.no_grad()
def fill(model: PreTrainedModel, parts: torch.nn.Module) -> None:
    """Put the whole tensors of a divided model of the same kind, which `parts` is, into the plain `model`."""
    for target, part in zip(model.parameters(), parts.parameters(), strict=True):
        target.copy_(whole(part.detach()))
