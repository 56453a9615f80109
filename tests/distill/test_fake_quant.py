"""Rounded weights against the tools that write the files: gguf-py, ONNX Runtime, and bounds that no tool decides."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants

from ammd.distill.fake_quant import matmul_nbits, q4_0, q8_0

GGUF = {"Q8_0": q8_0, "Q4_0": q4_0}
NBITS = {bits: partial(matmul_nbits, bits=bits) for bits in (4, 8)}


def weights(kind: str) -> torch.Tensor:
    """Return 64 rows of 96 weights; `bfloat16` ones often tie: in size, or half-way between two steps."""
    drawn = torch.randn(64, 96, generator=torch.Generator().manual_seed(3))
    return {
        "random": drawn,
        "bfloat16": (0.02 * torch.randn(4096, 96, generator=torch.Generator().manual_seed(4)))
        .bfloat16()
        .float(),
        "zero": torch.zeros(64, 96),
        "constant": torch.full((64, 96), -0.3),
        "tiny": drawn * 1e-7,
        "huge": drawn * 1e4,
        "positive": drawn.abs() + 1,
        "negative extreme": torch.where(torch.arange(96) % 32 == 5, -4.0, drawn.clamp(-3, 3)),
        "positive extreme": torch.where(torch.arange(96) % 32 == 5, 4.0, drawn.clamp(-3, 3)),
        "tied extremes": torch.where(
            torch.arange(96) % 32 > 29, torch.tensor([4.0, -4.0]).repeat(48), drawn.clamp(-3, 3)
        ),
    }[kind]


KINDS = (
    "random",
    "bfloat16",
    "zero",
    "constant",
    "tiny",
    "huge",
    "positive",
    "negative extreme",
    "positive extreme",
    "tied extremes",
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", GGUF)
def test_gguf_blocks_are_those_of_gguf_py(name: str, kind: str) -> None:
    exact, qtype = weights(kind), GGMLQuantizationType[name]
    expected = quants.dequantize(quants.quantize(exact.numpy(), qtype), qtype)
    assert np.array_equal(GGUF[name](exact).numpy(), expected)


def test_half_a_step_of_q8_0_rounds_away_from_zero_and_a_little_less_does_not() -> None:
    """The largest weight makes the step 1; 0.49999997 is the float32 before a half."""
    block = torch.zeros(1, 32)
    block[0, :5] = torch.tensor([127.0, 0.5, -0.5, 0.49999997, 2.5])
    assert q8_0(block)[0, :5].tolist() == [127.0, 1.0, -1.0, 0.0, 3.0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", NBITS)
def test_nbits_blocks_are_those_of_onnx_runtime(bits: int, kind: str) -> None:
    from onnxruntime.quantization.neural_compressor.weight_only import quant_tensor

    exact = weights(kind)
    steps, scale, zero_point = quant_tensor(exact.numpy(), bits, 32, "asym", "uint")
    stored = steps.astype(np.float32) - zero_point.astype(np.float32)
    expected = (stored * scale.astype(np.float32)).reshape(exact.shape)
    assert np.array_equal(NBITS[bits](exact).numpy(), expected)


@pytest.mark.parametrize("bits", NBITS)
def test_nbits_fills_the_last_block_with_zeros(bits: int) -> None:
    exact = weights("random")[:, :40]
    filled = torch.cat([exact, torch.zeros(64, 24)], dim=1)
    assert torch.equal(NBITS[bits](exact), NBITS[bits](filled)[:, :40])


@pytest.mark.parametrize("kind", ["random", "bfloat16", "negative extreme", "huge"])
@pytest.mark.parametrize(
    ("rounded", "share"),
    # Half a step as a share of the block's range or largest weight, and what a float16 scale adds to 127 or 8 steps.
    [(q8_0, 0.5 / 127 + 2**-11), (NBITS[4], 0.5 / 15 + 1e-6), (NBITS[8], 0.5 / 255 + 1e-6)],
    ids=["q8_0", "4 bits", "8 bits"],
)
def test_no_weight_moves_by_more_than_half_a_step(rounded, share: float, kind: str) -> None:
    exact = weights(kind).view(-1, 32)
    size = exact.abs().amax(1) if rounded is q8_0 else exact.amax(1) - exact.amin(1)
    assert ((rounded(exact) - exact).abs() <= share * size.unsqueeze(1)).all()


def test_no_weight_moves_by_more_than_half_a_step_of_q4_0_but_at_the_missing_end() -> None:
    exact = weights("random").view(-1, 32)
    extreme = exact.gather(1, exact.abs().argmax(1, keepdim=True))
    step = extreme.abs() / 8
    moved = (q4_0(exact) - exact).abs()
    is_at_end = -exact * extreme.sign() > 7.5 * step  # there is no step 8
    assert is_at_end.any()
    assert (moved[~is_at_end] <= (step * (0.5 + 2**-8)).expand_as(moved)[~is_at_end]).all()
    assert (moved <= step * (1 + 2**-8)).all()


@pytest.mark.parametrize("rounded", [q4_0, NBITS[4]], ids=["q4_0", "4 bits"])
def test_what_a_file_holds_stays_as_it_is(rounded) -> None:
    """Scales that float16 holds: the second rounding then finds every weight on a step."""
    steps = torch.randint(-8, 8, (64, 32), generator=torch.Generator().manual_seed(0)).float()
    steps[:, 0], steps[:, 1] = -8, 7
    held = steps * 0.0625
    assert torch.equal(rounded(held), held)
