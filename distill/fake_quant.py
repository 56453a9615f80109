"""Weights rounded to what a quantized file will hold: quantized and dequantized in one go.

Three block formats, each over 32 neighbours of a row and each to the last bit as the tool writes it that makes the
file: ggml's Q8_0 and Q4_0 (`quantize_row_q8_0_ref`, `quantize_row_q4_0_ref` in ggml-quants.c, which gguf-py repeats)
and ONNX Runtime's MatMulNBits with zero points, as its round-to-nearest writes it (`quant_tensor` in
onnxruntime.quantization.neural_compressor.weight_only). To the last bit, because a weight near the middle between two
steps would otherwise be trained as one of them and shipped as the other.

ggml's products are rounded before 8.5 is added, as they are in builds for x86; a build that fuses both (arm64) decides
a few exact ties of Q4_0 the other way.
"""

from __future__ import annotations

import torch
from torch.nn.functional import pad

BLOCK_WEIGHTS = 32


def q8_0(weights: torch.Tensor) -> torch.Tensor:
    """Return `weights` as a Q8_0 tensor holds them: 8 bits each, a float16 scale a block.

    Args:
        weights: float32 [rows, columns], columns a multiple of 32.

    Returns:
        float32 [rows, columns], at most half a step from `weights`; a step is 1/127 of the block's largest weight.
    """
    blocks = weights.reshape(-1, BLOCK_WEIGHTS)
    low, high = blocks.aminmax(dim=1, keepdim=True)
    scale = torch.maximum(high, -low).div_(127)
    steps = blocks * _inverse(scale)
    # C's roundf takes halves away from zero, torch's round to even. Adding 0.5 first would carry 0.49999997 to 1.
    sizes = steps.abs()
    whole = sizes.floor()
    whole += sizes.sub_(whole) >= 0.5
    return whole.copysign_(steps).mul_(_as_float16(scale)).view_as(weights)


def q4_0(weights: torch.Tensor) -> torch.Tensor:
    """Return `weights` as a Q4_0 tensor holds them: 4 bits each, a float16 scale a block.

    The block's largest weight becomes step -8, so that the other sign ends one step earlier.

    Args:
        weights: float32 [rows, columns], columns a multiple of 32.

    Returns:
        float32 [rows, columns], at most half a step from `weights`, or a whole one at the end that is missing; a step
        is an eighth of the block's largest weight.
    """
    blocks = weights.reshape(-1, BLOCK_WEIGHTS)
    scale = _signed_extreme(blocks).div_(-8)
    steps = (blocks * _inverse(scale)).add_(8.5).trunc_().clamp_(max=15).sub_(8)
    return steps.mul_(_as_float16(scale)).view_as(weights)


def matmul_nbits(weights: torch.Tensor, *, bits: int) -> torch.Tensor:
    """Return `weights` as a MatMulNBits node holds them: `bits` each, a float32 scale and a zero point a block.

    The range of a block is that of its weights, zero or not: one that lies on one side of zero is cut off, and one of
    equal weights is rounded to a whole number.

    Args:
        weights: float32 [rows, columns], a row for each output; the last block is filled up with zeros.
        bits: 4 or 8.

    Returns:
        float32 [rows, columns], at most half a step from `weights` where zero lies within the block's range.
    """
    columns = weights.shape[1]
    if columns % BLOCK_WEIGHTS:
        return matmul_nbits(pad(weights, (0, -columns % BLOCK_WEIGHTS)), bits=bits)[:, :columns]
    most = 2**bits - 1
    blocks = weights.reshape(-1, BLOCK_WEIGHTS)
    low, high = blocks.aminmax(dim=1, keepdim=True)
    scale = (high - low).double().div_(most).masked_fill_(low == high, 1.0)
    zero_point = (-low / scale).round_().clamp_(0, most)
    steps = (blocks / scale).add_(zero_point).round_().clamp_(0, most).sub_(zero_point)
    return steps.mul_(scale.float()).float().view_as(weights)


def _inverse(scale: torch.Tensor) -> torch.Tensor:
    return scale.reciprocal().masked_fill_(scale == 0, 0.0)


def _as_float16(scale: torch.Tensor) -> torch.Tensor:
    return scale.half().float()


def _signed_extreme(blocks: torch.Tensor) -> torch.Tensor:
    """Return each block's weight of the largest size; of two that differ in sign, the first."""
    low, high = blocks.aminmax(dim=1, keepdim=True)
    extreme = torch.where(high > -low, high, low)
    # Frequent among bfloat16 weights, but too rare to look for the first place in every block.
    tied = (high == -low).squeeze(1).nonzero().squeeze(1)
    if len(tied):
        rows = blocks[tied]
        extreme[tied] = rows.gather(1, rows.abs().argmax(dim=1, keepdim=True))
    return extreme
