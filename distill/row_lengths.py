"""Row lengths that quantizers can cut into their blocks.

Q8_0 and its like hold 32 weights of a row in a block, llama.cpp's K types (Q4_K, Q6_K) hold 256. Where 256 does not
divide a row, llama.cpp stores that tensor in a larger type with blocks of 32 and says so only in its log
(llama-quant.cpp, `tensor_type_fallback`); where 32 does not, in F16. onnxruntime's int4 quantizer puts the zero points
of two neighbouring blocks of 32 into a byte and fails where a row has an odd number of blocks. So a student's sizes
are multiples of 32 at least, and who chooses one that fits less well than another would is told.

In a student of Llama's shape `ffn_down` has rows of the feed-forward size, `attn_output` of attention heads times head
size; every other matrix has rows of the hidden size, which the student takes over from its teacher.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

BLOCK_WEIGHTS = 32
PAIR_WEIGHTS = 2 * BLOCK_WEIGHTS
K_BLOCK_WEIGHTS = 256


def nearest_multiples(size: int, block: int, *, most: int | None = None) -> list[int]:
    """Return the multiples of `block` next below and next above `size` that are above 0 and at most `most`."""
    below = size // block * block
    return [found for found in (below, below + block) if found > 0 and (most is None or found <= most)]


def fallback_rows(rows: Mapping[str, int]) -> dict[str, int]:
    """Return those tensors, by name, whose rows K types cannot hold."""
    return {name: length for name, length in rows.items() if length % K_BLOCK_WEIGHTS}


def length_warnings(
    key: str, chosen: int, *, tensor: str, row_weights: int, others: Callable[[int], Sequence[int]]
) -> list[str]:
    """Return what a user is told of the rows that a choice gives a tensor.

    Args:
        key: Of `prepare.student`.
        chosen: Its value.
        tensor: By its name in a GGUF.
        row_weights: Length of its rows.
        others: Gives the near values of the key whose rows a block of so many weights divides.
    """
    start = f"`prepare.student.{key}` = `{chosen}` makes rows of {row_weights} weights in `{tensor}`"
    warnings = []
    if row_weights % PAIR_WEIGHTS:
        way_out = _would(others(PAIR_WEIGHTS), PAIR_WEIGHTS) or "leave `onnx-int4` out of `export.schemes`"
        warnings.append(f"{start}, an odd number of blocks, which `onnx-int4` cannot be made of; {way_out}")
    if row_weights % K_BLOCK_WEIGHTS and (way_out := _would(others(K_BLOCK_WEIGHTS), K_BLOCK_WEIGHTS)):
        warnings.append(f"{start}, which llama.cpp stores in a larger type than Q4_K_M means; {way_out}")
    return warnings


def _would(values: Sequence[int], block: int) -> str:
    return f"{' or '.join(f'`{value}`' for value in values)} would divide by {block}" if values else ""
