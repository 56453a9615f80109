"""Sweeps: a recipe that lists values stands for all their combinations, each a recipe of its own.

For a key that takes one value, a list is a list to try; for a key that takes a list, a list of lists is. A list inside
a table that is itself one of several to try is tried with that table only.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from .faults import Fault, models_in
from .open_run import run_folder
from .recipe import Recipe, check_document, refusal
from .recipe_document import Changes, put_value, read_draft

MAX_RUNS = 10_000
_KeyPath = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One combination."""

    choices: Mapping[str, Any]  # by dotted key, in the recipe's order
    recipe: Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """All combinations, the last list changing fastest; a recipe without lists is one point without choices."""

    points: tuple[Point, ...]

    @property
    def name(self) -> str:
        """Of the recipe."""
        return self.points[0].recipe.name

    @property
    def keys(self) -> tuple[str, ...]:
        """Dotted keys that list values."""
        return tuple(dict.fromkeys(key for point in self.points for key in point.choices))


def load_sweep(path: Path | None = None, *, overrides: Changes = ()) -> Sweep:
    """Read, override and check a recipe that may list values.

    Args:
        path: A TOML file; None takes the packaged quickstart.
        overrides: As for `load_recipe`, lists included.

    Raises:
        RecipeError: The file is not there or not TOML, or lists every fault found in any of the combinations.
    """
    draft = read_draft(path, overrides)
    faults, points = list(draft.faults), []
    drawn = list(islice(_expand(draft.document, frozenset()), MAX_RUNS + 1))
    for chosen, document in drawn[:MAX_RUNS]:
        recipe, found = check_document(document)
        faults += found
        if recipe is not None:
            choices = {".".join(key): value for key, value in chosen.items()}
            points.append(Point(choices=choices, recipe=recipe))
    if ("name",) in drawn[0][0]:
        text = "cannot be swept: runs share stages under one name"
        faults.append(Fault(path=("name",), text=text))
    if len(drawn) > MAX_RUNS:
        last = list(drawn[0][0])[-1]
        faults.append(Fault(path=last, text=f"makes a sweep of more than {MAX_RUNS} runs"))
    if faults := faults or _find_twins(points):
        raise refusal(draft, list({repr(fault): fault for fault in faults}.values()))
    return Sweep(points=tuple(points))


def _find_twins(points: Sequence[Point]) -> list[Fault]:
    """Return a fault for each value that makes the same run as one before it."""
    faults: list[Fault] = []
    seen: dict[Path, Point] = {}
    for point in points:
        first = seen.setdefault(run_folder(point.recipe, runs_dir=Path()), point)
        changed = [key for key, value in point.choices.items() if first.choices.get(key) != value]
        if first is not point:
            key = (changed or list(point.choices))[-1]
            text = "makes the same run as a value before it"
            faults.append(Fault(path=tuple(key.split(".")), value=point.choices[key], text=text))
    return faults


def _expand(
    document: dict[str, Any], chosen: frozenset[_KeyPath]
) -> Iterator[tuple[dict[_KeyPath, Any], dict[str, Any]]]:
    """Yield each combination: the values at the keys that list some, and the document with them."""
    found = next((item for item in _lists(document, [Recipe], ()) if item[0] not in chosen), None)
    if found is None:
        yield {}, copy.deepcopy(document)
        return
    path, values = found
    for value in values:
        one = copy.deepcopy(document)
        put_value(one, path, value)
        for more, whole in _expand(one, chosen | {path}):
            yield {path: value, **more}, whole


def _lists(
    table: Mapping[str, Any], models: Sequence[type[BaseModel]], path: _KeyPath
) -> Iterator[tuple[_KeyPath, list[Any]]]:
    """Yield the keys of a table, and of those in it, that list values to try; unknown keys list none."""
    for key, value in table.items():
        types = [model.model_fields[key].annotation for model in models if key in model.model_fields]
        if isinstance(value, dict):
            yield from _lists(value, [below for one in types for below in models_in(one)], (*path, key))
        elif isinstance(value, list) and types:
            is_nested = any(isinstance(item, list) for item in value)
            if value and (is_nested or not any(map(_takes_list, types))):
                yield (*path, key), value


def _takes_list(annotation: Any) -> bool:
    """Tell whether a type has a list or tuple among its alternatives."""
    if get_origin(annotation) in (list, tuple):
        return True
    if isinstance(annotation, type):
        return False
    return any(map(_takes_list, get_args(annotation)))
