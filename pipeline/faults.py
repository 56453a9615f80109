"""Recipe faults as a person wants them: all at once, each with its dotted path, value, line and a way out.

pydantic reports where a value lies as a mixture of field names, list positions and union tags; this module
walks the settings models along it, so that the path is the one a user wrote and a misspelt key is answered
with the nearest valid one.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError

from .toml_text import find_line

_LONGEST_VALUE = 160  # characters of a value that are shown
_TAG_FAULTS = frozenset({"union_tag_invalid", "union_tag_not_found"})  # of a section's `kind`


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that is wrong with a recipe."""

    path: tuple[str, ...]
    text: str
    value: Any = None  # None: there is none, the key is missing
    where: str = ""  # "line 12" or "--set"


def faults_of(error: ValidationError, model: type[BaseModel]) -> list[Fault]:
    """Return what pydantic found wrong with a document that should be a `model`."""
    faults = []
    for detail in error.errors(include_url=False, include_context=False):
        path, tables, members = _follow(model, detail["loc"])
        if detail["type"] in _TAG_FAULTS:
            kinds = ", ".join(f"`{tag}`" for member in members for tag in _literals(member))
            value = detail["input"].get("kind") if isinstance(detail["input"], dict) else detail["input"]
            text = f"is missing, one of {kinds}" if value is None else f"should be one of {kinds}"
            faults.append(Fault(path=(*path, "kind"), value=value, text=text))
        elif detail["type"] == "extra_forbidden":
            text = "unknown key" + _nearest(path, tables, model)
            faults.append(Fault(path=path, value=detail["input"], text=text))
        elif detail["type"] == "missing":
            faults.append(Fault(path=path, text="is missing"))
        else:
            message = detail["msg"].removeprefix("Value error, ").removeprefix("Input ")
            faults.append(Fault(path=path, value=detail["input"], text=message[:1].lower() + message[1:]))
    return faults


def find_fault_lines(
    faults: Sequence[Fault], *, text: str, changed: frozenset[tuple[str, ...]]
) -> list[Fault]:
    """Add to each fault the line of the recipe's `text`, or `--set` for a path in `changed`."""
    placed = []
    for fault in faults:
        by_option = any(fault.path[: len(path)] == path for path in changed)
        line = None if by_option else find_line(text, fault.path)
        where = "--set" if by_option else f"line {line}" if line else ""
        placed.append(replace(fault, where=where))
    return placed


def describe_faults(faults: Sequence[Fault], *, label: str) -> str:
    """Return one line for one fault, or a heading and a line for each."""
    lines = [_describe(fault) for fault in faults]
    if len(lines) == 1:
        return f"{lines[0]} in `{label}`"
    return "\n  ".join([f"{len(lines)} faults in `{label}`", *lines])


def _describe(fault: Fault) -> str:
    name = f"`{'.'.join(fault.path)}`"
    place = f" ({fault.where})" if fault.where else ""
    if fault.value is None:
        return f"{name} {fault.text}{place}"
    value = json.dumps(fault.value, ensure_ascii=False, default=str)
    if len(value) > _LONGEST_VALUE:
        value = value[:_LONGEST_VALUE] + "…"
    return f"{name} = `{value}`: {fault.text}{place}"


def _follow(
    model: type[BaseModel], location: Sequence[int | str]
) -> tuple[tuple[str, ...], list[Any], list[type[BaseModel]]]:
    """Return a pydantic location's dotted path, the models of the table it ends in, and those of its value."""
    path: list[str] = []
    here: Any = model
    tables: list[type[BaseModel]] = [model]
    for step in location:
        if isinstance(step, int):
            path[-1] += f"[{step}]"
            continue
        tables = list(models_in(here)) or tables
        field = next((table.model_fields[step] for table in tables if step in table.model_fields), None)
        chosen = [table for table in tables if step in _tags(table)]
        if field is None and chosen:
            here = chosen[0]
            tables = chosen
            continue
        path.append(step)
        here = field.annotation if field is not None else None
    return tuple(path), tables, list(models_in(here))


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the settings models among a type's alternatives."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) is not None:
        for part in get_args(annotation):
            yield from models_in(part)


def _tags(model: type[BaseModel]) -> Iterator[str]:
    """Yield the names by which pydantic tells a member of a union: its class and its literal fields."""
    yield model.__name__
    yield from _literals(model)


def _literals(model: type[BaseModel]) -> Iterator[str]:
    """Yield the values of the field that tells members of a union apart."""
    if (field := model.model_fields.get("kind")) and get_origin(field.annotation) is Literal:
        yield from (tag for tag in get_args(field.annotation) if isinstance(tag, str))


def _nearest(path: tuple[str, ...], tables: Sequence[type[BaseModel]], root: type[BaseModel]) -> str:
    """Return advice for an unknown key: of the same name in its section, elsewhere, or a near name in its table."""
    *section, key = path
    siblings = [name for table in tables for name in table.model_fields]
    everywhere = list(dict.fromkeys(_all_keys(root, "")))  # members of a union share keys
    names = {_last(dotted) for dotted in everywhere}
    if ".".join(path) in everywhere:
        return f" for this kind, valid here: {', '.join(siblings)}"
    if key not in names and (close := difflib.get_close_matches(key, siblings, n=1, cutoff=0.5)):
        return f", the nearest valid one is `{'.'.join([*section, close[0]])}`"
    if close := difflib.get_close_matches(key, names, n=1, cutoff=0.7):
        same = [dotted for dotted in everywhere if _last(dotted) == close[0]]
        own = [dotted for dotted in same if section and dotted.startswith(f"{section[0]}.")] or same
        return f", the nearest valid one is {' or '.join(f'`{dotted}`' for dotted in own)}"
    return f", valid here: {', '.join(siblings)}"


def _last(dotted: str) -> str:
    return dotted.rsplit(".", 1)[-1]


def _all_keys(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield prefix + name
        for below in models_in(field.annotation):
            yield from _all_keys(below, f"{prefix}{name}.")
