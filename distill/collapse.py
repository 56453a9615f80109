"""Notice when a run has collapsed, from the lines it logs, and say how.

The limits are far from what any healthy run of this project showed: they are there to end a run that cannot
recover, not to judge one. Means over a few steps are compared with the phase's own beginning and with the teacher: a
student whose entropy falls while it comes nearer to a teacher that is sure of itself is well, and so is one that
repeats no more than its teacher does. One that learns given tokens (cross-entropy) becomes as sure as they are and may
leave its teacher on the way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

from ammd.errors import CollapseError

from .step_log import StepLog

_WINDOW_STEPS = 5
_ENTROPY_SHARE = 0.1  # of the first window's
_REPETITION = 0.6  # share of repeated 4-token sequences; most teachers and healthy students stay below 0.2
_REPETITION_BEYOND = 0.3  # the teacher's
_SATURATION = 0.95  # share of the policies' mass at the critic's bound
_STILL_STEPS = 25  # in succession


class CollapseWatch:
    """Sees every step of a phase."""

    def __init__(self, *, learns_tokens: bool = False) -> None:
        """Begin a phase; `learns_tokens` says that it descends cross-entropy, so that entropy tells nothing."""
        self._learns_tokens = learns_tokens
        self._recent: deque[StepLog] = deque(maxlen=_WINDOW_STEPS)
        self._first: list[StepLog] = []
        self._still = 0

    def facts(self) -> dict[str, Any]:
        """Return what was seen so far as JSON values."""
        lines = {"recent": self._recent, "first": self._first}
        return {name: [line.as_line() for line in kept] for name, kept in lines.items()} | {
            "still": self._still
        }

    def restore(self, facts: dict[str, Any]) -> None:
        """Take over what `facts` returned."""
        self._recent.extend(StepLog(**line) for line in facts["recent"])
        self._first += [StepLog(**line) for line in facts["first"]]
        self._still = facts["still"]

    def check(self, entry: StepLog) -> None:
        """Take the next step's line.

        Raises:
            CollapseError: The run has collapsed; the message says how.
        """
        self._recent.append(entry)
        if len(self._first) < _WINDOW_STEPS:
            self._first.append(entry)
        self._still = self._still + 1 if entry.stood_still else 0
        if self._still >= _STILL_STEPS:
            raise _collapse(
                entry,
                f"the student stood still for {self._still} steps: a critic does not learn enough of the gap",
                hint="raise `critic.ascents` or `critic.max_change`, or lower `critic.min_share`",
            )
        if len(self._recent) < _WINDOW_STEPS:
            return
        for side in ("off", "on"):
            if not self._learns_tokens:
                self._check_entropy(entry, side)
            saturation = _mean(self._recent, f"critic_saturation_{side}")
            if saturation is not None and saturation > _SATURATION:
                raise _collapse(
                    entry,
                    f"the critic of the {side}-policy side is at its bound on {saturation:.0%} of the policies",
                    hint="lower `critic.lr` or `critic.max_change`, or raise `critic_penalty`",
                )
        repetition = _mean(self._recent, "repetition_on")
        usual = _mean(self._recent, "repetition_off") or 0.0
        if repetition is not None and repetition > max(_REPETITION, usual + _REPETITION_BEYOND):
            raise _collapse(
                entry,
                f"the student repeats itself: {repetition:.0%} of the 4-token sequences of its texts are not new",
                hint="lower the learning rate of this phase, or set `kd_weight`",
            )

    def _check_entropy(self, entry: StepLog, side: str) -> None:
        now = _mean(self._recent, f"entropy_{side}")
        first = _mean(self._first, f"entropy_{side}")
        nearer = (_mean(self._recent, f"tv_{side}") or 0.0) < (_mean(self._first, f"tv_{side}") or 0.0)
        if now is not None and first and now < _ENTROPY_SHARE * first and not nearer:
            raise _collapse(
                entry,
                f"the student's entropy fell from {first:.3f} to {now:.3f} nats",
                hint="lower the learning rate of this phase, or set `kd_weight`",
            )


def _collapse(entry: StepLog, what: str, *, hint: str) -> CollapseError:
    return CollapseError(f"{what}, at step {entry.step} of phase `{entry.phase}`", hint=hint, step=entry.step)


def _mean(lines: Iterable[StepLog], field: str) -> float | None:
    """Return the mean of a field over the lines that have it."""
    values = [float(found) for line in lines if (found := getattr(line, field)) is not None]
    return sum(values) / len(values) if values else None
