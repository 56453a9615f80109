"""Which type each tensor gets, when all of them together may take so many bytes.

Each tensor has several ways to be stored, of which some are never worth it: another one takes no more bytes and loses
less, or a mixture of two others would. What is left are steps, each of which buys so much loss for so many bytes and
is dearer than the one before it. They are taken in the order of what they buy for a byte, those that no longer fit left
out (a knapsack with concave gains; losses of tensors are taken to add up). One tensor can be a third of a small
model, the embedding; its steps would leave gaps that nothing else fills, so all of its types are tried.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One way to store one tensor."""

    type_name: str
    bytes: int
    loss: float  # what is lost with it, in nats of KL a token


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A way to store every tensor."""

    types: Mapping[str, str]  # by tensor
    bytes: int
    loss: float


def best_within(options: Mapping[str, Sequence[Option]], limit: int) -> Plan | None:
    """Return the plan that loses least within `limit` bytes, or None where nothing fits."""
    largest = max(options, key=lambda name: max(option.bytes for option in options[name]))
    rest = {name: worthwhile(found) for name, found in options.items() if name != largest}
    found = []
    for option in worthwhile(options[largest]):
        chosen = _fill(rest, limit - option.bytes)
        if chosen is not None:
            found.append(_plan({**chosen, largest: option}))
    return min(found, key=lambda plan: (plan.loss, plan.bytes), default=None)


def smallest(options: Mapping[str, Sequence[Option]]) -> Plan:
    """Return the plan of the fewest bytes."""
    return _plan({name: worthwhile(found)[0] for name, found in options.items()})


def finest(options: Mapping[str, Sequence[Option]]) -> Plan:
    """Return the plan that loses least."""
    return _plan({name: worthwhile(found)[-1] for name, found in options.items()})


def worthwhile(options: Sequence[Option]) -> list[Option]:
    """Return the lower convex hull of loss over bytes, ascending in bytes."""
    hull: list[Option] = []
    for option in sorted(options, key=lambda option: (option.bytes, option.loss, option.type_name)):
        if hull and (option.loss >= hull[-1].loss or option.bytes == hull[-1].bytes):
            continue
        while len(hull) > 1 and _gain(hull[-2], hull[-1]) <= _gain(hull[-2], option):
            hull.pop()
        hull.append(option)
    return hull


def _fill(ladders: Mapping[str, Sequence[Option]], limit: int) -> dict[str, Option] | None:
    chosen = {name: ladder[0] for name, ladder in ladders.items()}
    room = limit - sum(option.bytes for option in chosen.values())
    if room < 0:
        return None
    steps = [(name, low, high) for name, ladder in ladders.items() for low, high in pairwise(ladder)]
    for name, low, high in sorted(steps, key=lambda step: (-_gain(step[1], step[2]), step[0])):
        if chosen[name] is low and high.bytes - low.bytes <= room:
            chosen[name] = high
            room -= high.bytes - low.bytes
    return chosen


def _gain(low: Option, high: Option) -> float:
    return (low.loss - high.loss) / (high.bytes - low.bytes)


def _plan(chosen: Mapping[str, Option]) -> Plan:
    return Plan(
        types={name: option.type_name for name, option in chosen.items()},
        bytes=sum(option.bytes for option in chosen.values()),
        loss=sum(option.loss for option in chosen.values()),
    )
