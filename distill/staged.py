"""Pruning in stages: prune, distill, prune, distill.

Who drops many layers at once starts training from a student that has lost its teacher's trail, and has chosen all
layers by what they did in the whole network. In stages, prepare drops the first part of them; the warm start is divided
into as many shares, and before each share but the first the student is cut again, by the influence that its layers
have on it by then. Prepare leaves what is still to be done in `student_cuts.json` beside the student. Both stacks of an
encoder-decoder are cut in each stage, the encoder first.

Each share is a phase of its own: it raises the learning rate anew and begins without the moments of the one before,
because those are means of gradients of another network, that with the layers now gone.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ammd.errors import DistillError

from .depth import Stack, block_influence, cut_layers, kept_layers, layers_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from .batches import Batch
    from .fleet import Fleet

log = logging.getLogger("ammd.distill")
CUTS_NAME = "student_cuts.json"
# Under which name a stage tells which of the teacher's layers the student has.
KEPT_KEYS = {Stack.DECODER: "kept_layers", Stack.ENCODER: "kept_encoder_layers"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cuts:
    """Which layers of its teacher a student has, and to how many it is to be cut, one cut after the other."""

    kept_layers: tuple[int, ...]
    to_come: tuple[int, ...]
    encoder: Cuts | None = None  # the same of an encoder-decoder's encoder


class StagedCuts:
    """The cuts of one student, made in place between the shares of its warm start."""

    def __init__(self, model: PreTrainedModel, cuts: Cuts | None) -> None:
        """Take the student as prepare has left it; None where nothing is to come."""
        self._model = model
        found = {Stack.ENCODER: cuts.encoder if cuts else None, Stack.DECODER: cuts}
        self._cuts = {stack: part for stack, part in found.items() if part is not None}
        self._kept = {stack: list(part.kept_layers) for stack, part in self._cuts.items()}

    @property
    def to_come(self) -> int:
        """How many cuts there are."""
        return len(self._cuts[Stack.DECODER].to_come) if self._cuts else 0

    def facts(self) -> dict[str, list[int]]:
        """Return which of its teacher's layers the student has by now; nothing where that is not known here."""
        return {KEPT_KEYS[stack]: kept for stack, kept in self._kept.items()}

    def repeat(self, facts: Mapping[str, list[int]]) -> None:
        """Cut as a training had that returned these facts."""
        for stack, kept in self._kept.items():
            self._cut(stack, [kept.index(layer) for layer in facts[KEPT_KEYS[stack]]])

    def make(self, number: int, batch: Batch, fleet: Fleet) -> None:
        """Make cut `number`, from 0, by the influence of the student's own layers, unless `repeat` has made it."""
        for stack, part in self._cuts.items():
            layers = part.to_come[number]
            if len(layers_of(self._model, stack)) > layers:
                influence = block_influence(self._model, batch, stack=stack)
                self._cut(stack, fleet.of_first(kept_layers(influence, layers)))
                log.info(
                    "the student's %s goes on with %d layers of its teacher's: %s",
                    stack,
                    layers,
                    self._kept[stack],
                )

    def _cut(self, stack: Stack, places: list[int]) -> None:
        cut_layers(self._model, places, stack=stack)
        self._kept[stack] = [self._kept[stack][place] for place in places]


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
    return spread_cuts(have, layers, stages)


def spread_cuts(have: int, layers: int, stages: int) -> list[int]:
    """Return the same, where a stage may also drop none."""
    return [have - (have - layers) * number // stages for number in range(1, stages + 1)]


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
    document: dict[str, Any] = {"kept_layers": cuts.kept_layers, "to_come": cuts.to_come}
    if cuts.encoder is not None:
        document["encoder"] = {"kept_layers": cuts.encoder.kept_layers, "to_come": cuts.encoder.to_come}
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
        return _as_cuts(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError) as exc:
        raise DistillError(f"`{path}` does not say how the student is to be cut", path=str(path)) from exc


def _as_cuts(document: Mapping[str, Any]) -> Cuts:
    return Cuts(
        kept_layers=tuple(document["kept_layers"]),
        to_come=tuple(document["to_come"]),
        encoder=_as_cuts(document["encoder"]) if "encoder" in document else None,
    )
