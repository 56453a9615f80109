"""How far a median may be off by chance: a seeded bootstrap in two levels.

Samples of one process are more alike than those of two: each process has its own memory layout and its own moment on
the machine. So processes are drawn first, with replacement, then samples within each. An interval is the middle 95 %
of what the draws give. With few processes it is a little too narrow, with one it knows nothing of their differences.

Source: Kalibera and Jones 2013, Rigorous benchmarking in reasonable time (random effects at every level of repetition).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Samples = Sequence[Sequence[float]]  # by process, equally many of each

DRAWS = 2000
_TAILS = (0.025, 0.975)


def median_interval(samples: Samples, *, generator: np.random.Generator) -> tuple[float, float]:
    """Return the 95 % interval of the median over all of `samples`."""
    return _middle(_medians(samples, generator))


def ratio_interval(
    current: Samples, baseline: Samples, *, generator: np.random.Generator
) -> tuple[float, float]:
    """Return the 95 % interval of the median of `current` over that of `baseline`, each drawn by itself."""
    return _middle(_medians(current, generator) / _medians(baseline, generator))


def _medians(samples: Samples, generator: np.random.Generator) -> NDArray[np.float64]:
    import numpy as np

    values = np.asarray(samples, dtype=np.float64)
    processes, repetitions = values.shape
    process = generator.integers(processes, size=(DRAWS, processes, 1))
    sample = generator.integers(repetitions, size=(DRAWS, processes, repetitions))
    medians: NDArray[np.float64] = np.median(values[process, sample].reshape(DRAWS, -1), axis=1)
    return medians


def _middle(draws: NDArray[np.float64]) -> tuple[float, float]:
    import numpy as np

    low, high = np.quantile(draws, _TAILS)
    return float(low), float(high)
