"""What an objective descends on the teacher's texts and what on the student's: settings in, weights out.

Where an objective is one divergence on both kinds of texts, each side counts by its share of the rows, so that the
loss is a mean over a mixture of both (GKD draws the kind of a whole batch instead; the expectation is the same).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from . import divergences as d
from . import settings as s
from .objective import Weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One kind of texts in a phase."""

    weights: Weights
    rows: int  # in a batch
    scale: float = 1.0  # of this side's loss


def sides_of(objective: s.Objective, *, batch_size: int) -> tuple[Side | None, Side | None]:
    """Return the teacher's side and the student's; None for one that has no part in `objective`."""
    match objective:
        case s.Sft():
            return Side(weights=Weights(cross_entropy=1.0), rows=batch_size), None
        case s.Ammd() | s.LeCam():
            return _game_sides(objective, batch_size)
        case s.DistiLLM():
            side = Side(weights=Weights(divergence=_skewed(objective)), rows=batch_size)
            return side, side  # a step has one of them
        case s.MiniLLM():
            return None, Side(weights=Weights(divergence=d.ReverseKL()), rows=batch_size)
        case s.ForwardKL():
            weights = Weights(kl=1.0)
        case s.ReverseKL():
            weights = Weights(divergence=d.ReverseKL())
        case s.GeneralisedJSD():
            weights = Weights(divergence=d.GeneralisedJSD(objective.beta))
        case s.TotalVariation():
            weights = Weights(divergence=d.TotalVariation())
        case s.SkewKL():
            weights = Weights(divergence=d.SkewKL(objective.alpha))
        case s.SkewReverseKL():
            weights = Weights(divergence=d.SkewReverseKL(objective.alpha))
    off_rows, on_rows = _rows(batch_size, objective.student_share)
    share = objective.student_share
    return (
        Side(weights=weights, rows=off_rows, scale=1 - share) if off_rows else None,
        Side(weights=weights, rows=on_rows, scale=share) if on_rows else None,
    )


def _skewed(objective: s.DistiLLM) -> d.Divergence:
    kind = d.SkewKL if objective.divergence == "skew_kl" else d.SkewReverseKL
    return kind(objective.alpha)


def _game_sides(objective: s.Game, batch_size: int) -> tuple[Side | None, Side | None]:
    """Both distances keep their own weights, whatever the rows."""
    off = Weights(
        kl=objective.kd_weight,
        game=objective.off_weight,
        critic_penalty=objective.critic_penalty,
        critic_mixture=objective.critic_mixture if isinstance(objective, s.Ammd) else 0.5,
        critic_bound=objective.critic_bound,
    )
    on = replace(off, kl=0.0, game=objective.on_weight)
    off_rows, on_rows = _rows(batch_size, objective.student_share if objective.on_weight else 0.0)
    return (
        Side(weights=off, rows=off_rows) if off_rows else None,
        Side(weights=on, rows=on_rows) if on_rows else None,
    )


def _rows(batch_size: int, student_share: float) -> tuple[int, int]:
    """Return the teacher's rows and the student's; a side with any share has at least one."""
    on = round(batch_size * student_share)
    off = batch_size - on
    return (0 if student_share == 1 else max(1, off)), (0 if student_share == 0 else max(1, on))
