"""How far one next-token distribution is from another, position by position.

The reference is stored as hidden states and the unembedding matrix: logits of thousands of positions over
49,152 tokens would take gigabytes, and one matrix product gives them back exactly, a chunk at a time.
All arithmetic is float32; sums over positions are float64. Legend: N positions, C positions in a chunk,
H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

_PRODUCT_POSITIONS = 64  # in one matrix product, which reads the whole unembedding each time
_CACHED_POSITIONS = 16  # compared at once: several [C, V] arrays should stay in the processor's cache


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What a model's distributions differ by from the reference's, over N positions."""

    kl_nats: float  # mean KL(reference || model) a position
    top1_agreement: float  # share of positions with the same likeliest token
    max_logit_error: float  # largest |logit difference| over positions and vocabulary
    perplexity: float  # of the text's own tokens
    perplexity_change: float  # against the reference's, as a share of it
    positions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HiddenStates:
    """What recomputes the reference's logits."""

    hidden: Floats  # [N, H] after the final norm
    unembedding: Floats  # [V, H]

    def logits(self, start: int, stop: int) -> Floats:
        """Return float32 [stop - start, V]."""
        logits: Floats = self.hidden[start:stop] @ self.unembedding.T
        return logits


def load_hidden_states(path: Path) -> HiddenStates:
    """Read what `reference` saved, without torch."""
    from safetensors.numpy import load_file

    tensors = load_file(path)
    return HiddenStates(hidden=tensors["hidden"], unembedding=tensors["unembedding"])


def row_divergences(reference: Floats, logits: Floats) -> Floats:
    """Return KL(softmax(reference) || softmax(logits)) in nats for each row. Both [C, V], result [C].

    With d = reference - logits and p = softmax(reference), KL = sum(p d) + log(sum(p exp(-d))). Shifting d
    by its mean under p leaves log(1 + sum(p (exp(-d) - 1))), which subtracts no two large numbers and so
    resolves the 1e-5 nats by which an F16 file differs.
    """
    import numpy as np

    probs = np.exp(reference - reference.max(axis=-1, keepdims=True))
    probs /= probs.sum(axis=-1, keepdims=True)
    difference = reference - logits
    difference -= np.einsum("cv,cv->c", probs, difference)[:, None]
    np.clip(difference, -80, None, out=difference)  # exp(80) is finite in float32; beyond it KL is absurd
    divergence: Floats = np.log1p(np.einsum("cv,cv->c", probs, np.exp(-difference) - 1))
    return np.maximum(divergence, 0)  # rounding can leave -1e-8 where both are equal


def compare(reference: HiddenStates, logits: Iterable[Floats], targets: Sequence[int]) -> Comparison:
    """Compare a model's logits with the reference's.

    Args:
        reference: N positions.
        logits: Chunks float32 [C, V] of the same positions in the same order.
        targets: The token of the text that follows each position, N.

    Raises:
        ValueError: The model's vocabulary has another size.
    """
    import numpy as np

    divergence, agreed, largest, position = 0.0, 0, 0.0, 0
    own_nll, reference_nll = 0.0, 0.0
    for chunk in _at_most(logits, _PRODUCT_POSITIONS):
        product = reference.logits(position, position + len(chunk))
        if product.shape != chunk.shape:
            raise ValueError(f"logits have shape {chunk.shape}, the reference's {product.shape}")
        for start in range(0, len(chunk), _CACHED_POSITIONS):
            exact, rows = (array[start : start + _CACHED_POSITIONS] for array in (product, chunk))
            divergence += float(row_divergences(exact, rows).sum(dtype=np.float64))
            agreed += int((exact.argmax(axis=-1) == rows.argmax(axis=-1)).sum())
            largest = max(largest, float(np.abs(exact - rows).max()))
            follows = targets[position + start : position + start + len(rows)]
            own_nll += _nll(rows, follows)
            reference_nll += _nll(exact, follows)
        position += len(chunk)
    return Comparison(
        kl_nats=divergence / position,
        top1_agreement=agreed / position,
        max_logit_error=largest,
        perplexity=float(np.exp(own_nll / position)),
        perplexity_change=float(np.expm1((own_nll - reference_nll) / position)),
        positions=position,
    )


def _nll(logits: Floats, targets: Sequence[int]) -> float:
    """Return -log p of the targets, summed over the rows."""
    import numpy as np

    largest = logits.max(axis=-1)
    total = np.log(np.exp(logits - largest[:, None]).sum(axis=-1)) + largest
    return float((total - logits[np.arange(len(logits)), np.asarray(targets)]).sum(dtype=np.float64))


def _at_most(chunks: Iterable[Floats], size: int) -> Iterator[Floats]:
    for rows in chunks:
        for start in range(0, len(rows), size):
            yield rows[start : start + size]
