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
from typing import TYPE_CHECKING, Any

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

    def chunks(self) -> Iterator[Floats]:
        """Give the logits of all positions, some at a time."""
        for start in range(0, len(self.hidden), _PRODUCT_POSITIONS):
            yield self.logits(start, start + _PRODUCT_POSITIONS)


@dataclass(frozen=True, slots=True)
class _Softmax:
    probs: Floats  # [C, V]
    log_total: Floats  # log of the sum of exponentials, [C]


def load_hidden_states(path: Path) -> HiddenStates:
    """Read what `reference` saved, without torch."""
    from safetensors.numpy import load_file

    tensors = load_file(path)
    return HiddenStates(hidden=tensors["hidden"], unembedding=tensors["unembedding"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Positions:
    """The same, position by position. Arrays of N."""

    kl_nats: Floats  # KL(reference || model)
    tv: Floats  # total variation, from 0 to 1
    agrees: NDArray[np.bool_]  # the likeliest token is the same
    reference_top_prob: Floats  # probability of the reference's likeliest token
    nll_nats: Floats  # -log p of the text's own token
    reference_nll_nats: Floats
    max_logit_error: float


def row_divergences(reference: Floats, logits: Floats) -> Floats:
    """Return KL(softmax(reference) || softmax(logits)) in nats for each row. Both [C, V], result [C]."""
    return _divergences(reference, logits, _softmax(reference), _softmax(logits))


def _divergences(reference: Floats, logits: Floats, exact: _Softmax, rows: _Softmax) -> Floats:
    """Return KL for each row.

    With d = reference - logits and p = softmax(reference), KL = sum(p d) + log(sum(p exp(-d))). Shifting d
    by its mean under p leaves log(1 + sum(p (exp(-d) - 1))), which subtracts no two large numbers and so
    resolves the 1e-5 nats by which an F16 file differs. Where the model likes what has no probability in float32, that
    sum is blind; beyond one nat the plain formula is exact enough.
    """
    import numpy as np

    difference = reference - logits
    mean = np.einsum("cv,cv->c", exact.probs, difference)
    difference -= mean[:, None]
    np.clip(difference, -80, None, out=difference)  # exp(80) is finite in float32
    change = np.exp(np.negative(difference, out=difference), out=difference)
    change -= 1
    small: Floats = np.log1p(np.einsum("cv,cv->c", exact.probs, change))
    plain = mean + rows.log_total - exact.log_total
    # Rounding can leave -1e-8 where both are equal.
    return np.where(plain > 1, plain, np.maximum(small, 0)).astype(np.float32)


def compare(reference: HiddenStates, logits: Iterable[Floats], targets: Sequence[int]) -> Comparison:
    """Compare a model's logits with the reference's, over all positions together; see `compare_positions`."""
    import numpy as np

    found = compare_positions(reference, logits, targets)
    own, exact = (float(nll.mean(dtype=np.float64)) for nll in (found.nll_nats, found.reference_nll_nats))
    return Comparison(
        kl_nats=float(found.kl_nats.mean(dtype=np.float64)),
        top1_agreement=float(found.agrees.mean()),
        max_logit_error=found.max_logit_error,
        perplexity=float(np.exp(own)),
        perplexity_change=float(np.expm1(own - exact)),
        positions=len(found.kl_nats),
    )


def compare_positions(reference: HiddenStates, logits: Iterable[Floats], targets: Sequence[int]) -> Positions:
    """Compare a model's logits with the reference's.

    Args:
        reference: N positions.
        logits: Chunks float32 [C, V] of the same positions in the same order.
        targets: The token of the text that follows each position, N.

    Raises:
        ValueError: The model's vocabulary has another size.
    """
    import numpy as np

    blocks: list[dict[str, NDArray[Any]]] = []
    largest, position = 0.0, 0
    for chunk in _at_most(logits, _PRODUCT_POSITIONS):
        product = reference.logits(position, position + len(chunk))
        if product.shape != chunk.shape:
            raise ValueError(f"logits have shape {chunk.shape}, the reference's {product.shape}")
        for start in range(0, len(chunk), _CACHED_POSITIONS):
            exact, rows = (array[start : start + _CACHED_POSITIONS] for array in (product, chunk))
            follows = np.asarray(targets[position + start : position + start + len(rows)])
            blocks.append(_compare_block(exact, rows, follows))
            largest = max(largest, float(np.abs(exact - rows).max()))
        position += len(chunk)
    arrays = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
    return Positions(**arrays, max_logit_error=largest)


def _compare_block(reference: Floats, logits: Floats, targets: NDArray[Any]) -> dict[str, NDArray[Any]]:
    import numpy as np

    exact, rows, places = _softmax(reference), _softmax(logits), np.arange(len(logits))
    return {
        "kl_nats": _divergences(reference, logits, exact, rows),
        "reference_top_prob": exact.probs.max(axis=-1),
        "agrees": reference.argmax(axis=-1) == logits.argmax(axis=-1),
        "nll_nats": rows.log_total - logits[places, targets],
        "reference_nll_nats": exact.log_total - reference[places, targets],
        # Last, as it works in place.
        "tv": np.abs(np.subtract(exact.probs, rows.probs, out=rows.probs), out=rows.probs).sum(axis=-1) / 2,
    }


def _softmax(logits: Floats) -> _Softmax:
    import numpy as np

    largest = logits.max(axis=-1, keepdims=True)
    probs = np.exp(logits - largest)
    total = probs.sum(axis=-1, keepdims=True)
    probs /= total
    return _Softmax(probs=probs, log_total=(np.log(total) + largest)[:, 0])


def _at_most(chunks: Iterable[Floats], size: int) -> Iterator[Floats]:
    for rows in chunks:
        for start in range(0, len(rows), size):
            yield rows[start : start + size]
