"""The student's loss on texts it does not learn from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .bridge import Bridge, TeacherView
from .chunked import States, matching_loss
from .score import Score

if TYPE_CHECKING:
    from .fleet import Fleet
    from .objective import Weights
    from .policy import Policy
    from .supply import TeacherBatch


def mean_loss(
    student: Policy,
    teacher: Policy,
    batches: Sequence[TeacherBatch],
    *,
    weights: Weights,
    chunk_tokens: int,
    fleet: Fleet,
    bridge: Bridge | None = None,
) -> float:
    """Return the student's mean loss a response token on the teacher's texts, each process reading some."""
    total, tokens = 0.0, 0
    # A divided student is put together by all, so all have to read as often.
    own = batches if student.is_divided else batches[fleet.rank :: fleet.size]
    for one in own:
        batch = one.batch.to(student.device)
        hiddens = student(batch)
        if one.view is None:
            view = TeacherView(hiddens=hiddens if teacher is student else teacher(batch))
        else:
            view = one.view.to(student.device)
        states = States(
            teacher_hiddens=view.hiddens,
            teacher_head=teacher.head,
            targets=batch.targets,
            last_in_row=batch.last_in_row,
            comparison=bridge.comparison(view, spells=True) if bridge else None,
        )
        hiddens = hiddens.to(view.hiddens.dtype)
        loss, sums = matching_loss(
            hiddens, student.head, states=states, weights=weights, score=Score(), chunk_tokens=chunk_tokens
        )
        total += float(loss) * sums.tokens
        tokens += sums.tokens
    total, count = fleet.sums([total, tokens])
    return total / count
