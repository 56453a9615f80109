"""Choose a token from an engine's logits: one place, numpy alone, so that all engines draw alike.

The filters come in the order of transformers: repetition penalty, temperature, top-k, top-p, min-p. The penalty
looks at the whole prompt and the answer so far, as theirs does. llama.cpp's own tools apply the temperature last,
so that top-p and min-p cut the distribution of temperature 1 there, and their penalty looks at the last 64 tokens.

Sums are float64. Equal logits are settled by the lower id, except at the border of top-k, where all of them stay,
as in transformers. A draw walks the allowed tokens in the order of their ids, so that no sorting algorithm has a
say in it. A full sort of 49,152 numbers at each token would cost as much as a small model's layer: top-k is a
partition of what is above a bound, and top-p sorts only the bin of weights in which the set ends. The engine's
array is never written to.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ammd.errors import EngineError, RecipeError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .engine import Logits

_PENALTIES = (0.01, 100.0)  # far beyond any use; within them no float32 logit overflows
_COLUMN = 16  # scores of which the largest stands for all while top-k looks for a bound
_BINS_PER_NAT = 16  # of log weights, for top-p


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are drawn. The defaults take the likeliest."""

    temperature: float = 0.0  # 0 takes the likeliest token; the three filters below say nothing then
    top_k: int = 0  # draw from this many likeliest tokens; 0 from all
    top_p: float = 1.0  # smallest set of likeliest tokens that holds this much probability
    min_p: float = 0.0  # tokens at least this likely, as a share of the likeliest one's probability
    repetition_penalty: float = (
        1.0  # of the tokens in prompt and answer: logits above 0 divided, below multiplied
    )
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values that have no meaning.

        Raises:
            RecipeError: A value is out of range.
        """
        low, high = _PENALTIES
        for name, fine, rule in (
            ("temperature", 0 <= self.temperature < math.inf, "at least 0, and finite"),
            ("top_k", self.top_k >= 0, "at least 0"),
            ("top_p", 0 < self.top_p <= 1, "above 0, at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "from 0 to 1"),
            ("repetition_penalty", low <= self.repetition_penalty <= high, f"from {low:g} to {high:g}"),
            ("seed", self.seed >= 0, "at least 0"),
        ):
            if not fine:
                raise RecipeError(f"cannot sample with `{name}` = `{getattr(self, name)}`", hint=rule)


class Sampler:
    """Chooses the tokens of one answer, one after another."""

    def __init__(self, sampling: Sampling, *, prompt_ids: Sequence[int] = ()) -> None:
        """Begin at the seed.

        Args:
            sampling: How tokens are drawn.
            prompt_ids: What the repetition penalty counts as said before the answer.
        """
        import numpy as np

        self._sampling = sampling
        self._generator = np.random.default_rng(sampling.seed)
        self._said = list(prompt_ids)
        self._seen: NDArray[np.bool_] | None = None

    def choose(self, logits: Logits) -> int:
        """Return the next token id, given float32 logits [V], which are only read.

        Raises:
            EngineError: A logit is infinite or not a number, or all are minus infinity.
        """
        sampling = self._sampling
        seen = self._mark_seen(len(logits))
        if sampling.temperature == 0:
            scores = _penalise(logits, seen, sampling.repetition_penalty)
            token = int(scores.argmax())  # NaN counts as the largest
            _check_best(float(scores[token]))
        else:
            ids, weights = weigh_tokens(logits, sampling=sampling, seen=seen)
            reached = weights.cumsum(out=weights)
            # A random number is at most 1 - 2**-53: its product with the sum is less than the sum.
            place = int(reached.searchsorted(self._generator.random() * reached[-1], side="right"))
            token = place if ids is None else int(ids[place])
        if seen is not None:
            seen[token] = True
        return token

    def _mark_seen(self, vocab_size: int) -> NDArray[np.bool_] | None:
        """Return what the penalty applies to, bool [V]; None without a penalty."""
        import numpy as np

        if self._sampling.repetition_penalty == 1:
            return None
        if self._seen is None:
            self._seen = np.zeros(vocab_size, dtype=np.bool_)
            self._seen[self._said] = True
        return self._seen


def weigh_tokens(
    logits: Logits, *, sampling: Sampling, seen: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.intp] | None, NDArray[np.float64]]:
    """Return the ids that the filters leave, ascending or None for all, and weights in proportion to probabilities.

    Args:
        logits: What the engine gave. float32 [V]; only read.
        sampling: The filters; its temperature is above 0.
        seen: True for tokens of prompt and answer. bool [V]; None for none.

    Raises:
        EngineError: A logit is infinite or not a number, or all are minus infinity.
    """
    import numpy as np

    scores = _penalise(logits, seen, sampling.repetition_penalty)
    best = float(scores.max())
    _check_best(best)
    ids = None
    if 0 < sampling.top_k < len(scores):  # a temperature changes no order
        ids = _largest(scores, sampling.top_k)
        scores = scores[ids]
    weights = np.subtract(scores, best, dtype=np.float64)
    with np.errstate(over="ignore", under="ignore"):  # a tiny temperature: minus infinity, weight 0
        weights /= sampling.temperature
        np.exp(weights, out=weights)  # the likeliest has weight 1
    if sampling.top_p < 1:
        kept = _nucleus(weights, sampling.top_p)
        ids, weights = kept if ids is None else ids[kept], weights[kept]
    if sampling.min_p > 0:
        kept = np.flatnonzero(weights >= sampling.min_p)
        ids, weights = kept if ids is None else ids[kept], weights[kept]
    return ids, weights


def _largest(scores: NDArray[np.floating], count: int) -> NDArray[np.intp]:
    """Return the places of the `count` largest scores, and of those that equal the least of them."""
    import numpy as np

    columns = len(scores) // _COLUMN
    places = None
    if count <= columns:
        largest = scores[: columns * _COLUMN].reshape(_COLUMN, columns).max(axis=0)
        # So many scores are at least this large, one in each of so many columns: a lower one is out.
        places = np.flatnonzero(scores >= np.partition(largest, -count)[-count])
        scores = scores[places]
    found = np.flatnonzero(scores >= np.partition(scores, -count)[-count])
    return found if places is None else places[found]


def _nucleus(weights: NDArray[np.float64], top_p: float) -> NDArray[np.intp]:
    """Return the places of the smallest set of largest weights that holds `top_p` of their sum."""
    import numpy as np

    total = weights.sum()
    # All weights below this one together hold less than 1 - top_p: none of them can be in the set.
    likely = np.flatnonzero(weights >= (1 - top_p) * total / len(weights))
    bins = (np.log(weights[likely]) * -_BINS_PER_NAT).astype(np.intp)
    reached = np.bincount(bins, weights=weights[likely]).cumsum()
    border = min(int(reached.searchsorted(top_p * total)), len(reached) - 1)
    before = reached[border - 1] if border else 0.0
    inside = likely[bins == border]
    ordered = np.sort(weights[inside])[::-1]
    count = min(int(ordered.cumsum().searchsorted(top_p * total - before)) + 1, len(ordered))
    least = ordered[count - 1]
    above = inside[weights[inside] > least]
    kept = np.zeros(len(weights), dtype=np.bool_)
    kept[likely[bins < border]] = True
    kept[above] = True
    kept[inside[weights[inside] == least][: count - len(above)]] = True
    return np.flatnonzero(kept)


def _penalise(
    logits: Logits, seen: NDArray[np.bool_] | None, penalty: float
) -> NDArray[np.float32] | NDArray[np.float64]:
    """Return the logits themselves, or a copy in which what was said is less likely."""
    import numpy as np

    if seen is None or penalty == 1:
        return logits
    scores = logits.astype(np.float64)
    said = scores[seen]
    scores[seen] = np.where(said < 0, said * penalty, said / penalty)
    return scores


def _check_best(score: float) -> None:
    """Refuse a largest logit from which nothing can be drawn.

    Raises:
        EngineError: It is infinite or not a number.
    """
    if not math.isfinite(score):
        raise EngineError(
            f"the engine's largest logit is `{score}`, no token can be chosen",
            hint="the file is damaged, or its numbers overflow in this engine: `ammd verify` tells",
        )
