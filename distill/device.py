"""Where a stage's networks run, and in which dtype their matrix products do."""

from __future__ import annotations

import os

import torch

from ammd.errors import DistillError
from ammd.machine import has_fast_bfloat16, total_memory_bytes

from .settings import Device, Precision


def choose_device(wanted: Device) -> torch.device:
    """Return the device of this process: of several on one machine, each takes a GPU of its own.

    `auto` takes a GPU where every process on this machine has one.

    Raises:
        DistillError: A GPU is wanted and there is none for this process.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "cuda" and found < processes:
        raise DistillError(
            f'device "cuda" was asked for, and torch {torch.__version__} finds {found} CUDA GPUs for {processes} '
            f"process{'es' if processes > 1 else ''} on this machine",
            hint='set the device to "auto" or "cpu", or install a CUDA build of torch',
        )
    if wanted == "cpu" or found < processes:
        return torch.device("cpu")
    # cuDNN plans its attention anew for each shape, and the cache grows by one at each token: to sample 32 rows of 64
    # tokens twice from a network of 30 layers took 10.4 s on an H200, and 3.1 s without it.
    torch.backends.cuda.enable_cudnn_sdp(False)
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def matrix_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """Return the dtype of matrix products: `auto` is bfloat16 where the device multiplies it in hardware."""
    if precision == "auto":
        is_fast = has_fast_bfloat16() if device.type == "cpu" else torch.cuda.is_bf16_supported()
        precision = "bfloat16" if is_fast else "float32"
    return torch.bfloat16 if precision == "bfloat16" else torch.float32


def memory_bytes(device: torch.device) -> int:
    """Return all memory of the device, in use or not."""
    if device.type == "cpu":
        return total_memory_bytes()
    return int(torch.cuda.get_device_properties(device).total_memory)


def describe_device(device: torch.device) -> str:
    """Return its kind, and the name of a GPU."""
    return device.type if device.type == "cpu" else f"{device.type} ({torch.cuda.get_device_name(device)})"
