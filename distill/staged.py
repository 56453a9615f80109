"""Pruning in stages: prune, distill, prune, distill.

Who drops many layers at once starts training from a student that has lost its teacher's trail, and has chosen all
layers by what they did in the whole network. In stages, prepare drops the first part of them; the warm start is divided
into as many shares, and before each share but the first the student is cut again, by the influence that its layers
have on it by then. Prepare leaves what is still to be done in `student_cuts.json` beside the student.

Each share is a phase of its own: it raises the learning rate anew and begins without the moments of the one before,
because those are means of gradients of another network, that with the layers now gone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ammd.errors import DistillError

CUTS_NAME = "student_cuts.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cuts:
    """Which layers of its teacher a student has, and to how many it is to be cut, one cut after the other."""

    kept_layers: tuple[int, ...]
    to_come: tuple[int, ...]


def layer_counts(have: int, layers: int, stages: int) -> list[int]:
    """Return how many layers there are after each of `stages` cuts from `have` to `layers`, as even as can be.

    Raises:
        DistillError: There are more stages than layers to drop.
    """
    dropped = have - layers
    if stages > max(1, dropped):
        raise DistillError(
            f"`{stages}` stages cannot drop {dropped} layers: each of them has to drop one at least",
            hint=f"set `prepare.student.stages` to at most {max(1, dropped)}",
        )
    return [have - dropped * number // stages for number in range(1, stages + 1)]


def share_steps(steps: int, shares: int) -> list[int]:
    """Return the steps of each share of a phase, as even as can be.

    Raises:
        DistillError: A share would have none.
    """
    if steps < shares:
        raise DistillError(
            f"`distill.warm.steps` = `{steps}` cannot be divided over the {shares} stages of the student",
            hint=f"set it to at least {shares}, or `prepare.student.stages` to less",
        )
    return [steps * number // shares - steps * (number - 1) // shares for number in range(1, shares + 1)]


def write_cuts(folder: Path, cuts: Cuts) -> None:
    """Write what is still to be done into the folder of the prepare stage."""
    document = {"kept_layers": cuts.kept_layers, "to_come": cuts.to_come}
    (folder / CUTS_NAME).write_text(json.dumps(document) + "\n", encoding="utf-8")


def read_cuts(folder: Path) -> Cuts | None:
    """Read it; None where the student is pruned in one stage or not at all.

    Raises:
        DistillError: The file is not one of this kind.
    """
    path = folder / CUTS_NAME
    if not path.is_file():
        return None
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return Cuts(kept_layers=tuple(document["kept_layers"]), to_come=tuple(document["to_come"]))
    except (ValueError, KeyError, TypeError) as exc:
        raise DistillError(f"`{path}` does not say how the student is to be cut", path=str(path)) from exc
