"""A recipe before it is checked: the TOML that a file holds, what `--set` changes in it, and its paths made absolute.

Paths in a recipe are relative to the recipe's own folder, those in `--set` to the current one, so that a
recipe can be moved with its data and a shell's completion works. `builtin:quickstart` names the prompt files
that ship with the package.
"""

from __future__ import annotations

import copy
import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from ammd.errors import RecipeError

from .faults import Fault
from .toml_text import parse_value

BUILTIN = "builtin:quickstart"
RECIPES = files("ammd.pipeline").joinpath("recipes")  # those that ship with the package, by name
# Keys that name a model, and keys that name a data file with its name inside the package.
SOURCES: tuple[tuple[str, ...], ...] = (("prepare", "teacher"), ("prepare", "student", "source"))
DATA_FILES: Mapping[tuple[str, ...], str] = {
    ("prepare", "prompts"): "quickstart_train.jsonl",
    ("prepare", "heldout"): "quickstart_heldout.jsonl",
}
TEXTS = (("prepare", "vocabulary", "texts"), ("export", "imatrix", "texts"))  # keys with lists of data files
FOLDERS = (("data",), ("prepare", "data"), ("evaluate", "data"))  # keys that name the folder of tasks' data
# Keys that name a task or a list of tasks, packaged ones or paths of .toml files.
TASKS = (("prepare", "task"), ("evaluate", "tasks"))

# Settings to change: `a.b=value` with a TOML value, as `--set` takes it, or values of Python by dotted key.
Changes = Sequence[str] | Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A recipe's document with the changes asked for."""

    label: str  # what messages call it
    text: str  # as written
    document: dict[str, Any]
    changed: frozenset[tuple[str, ...]]  # paths that are not as written
    faults: tuple[Fault, ...]  # of the changes


def read_draft(path: Path | None, changes: Changes) -> Draft:
    """Read a recipe and apply changes; None reads the packaged quickstart.

    Raises:
        RecipeError: The file is not there, or not TOML.
    """
    label, text, folder = _read_text(path)
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as exc:
        raise RecipeError(f"`{label}` is not TOML: {exc}", path=label) from exc
    _resolve_paths(document, folder)
    changed, faults = apply_changes(document, changes)
    return Draft(label=label, text=text, document=document, changed=changed, faults=tuple(faults))


def apply_changes(
    document: dict[str, Any], changes: Changes
) -> tuple[frozenset[tuple[str, ...]], list[Fault]]:
    """Change a document in place; return the paths that were changed and what is wrong with the changes."""
    changed, faults = set(), []
    for text, key, value in _parse(changes):
        path = tuple(part.strip() for part in key.split("."))
        if (text and "=" not in text) or not all(path):
            faults.append(Fault(path=("--set",), value=text or key, text="should have the form `a.b=value`"))
            continue
        if blocked := put_value(document, path, value):
            faults.append(Fault(path=path, value=value, text=f"`{blocked}` is a value, not a section"))
            continue
        # Resolved one at a time: the recipe's own paths are absolute already and stay as they are.
        _resolve_paths(document, Path.cwd())
        changed.add(path)
    return frozenset(changed), faults


def get_value(document: Mapping[str, Any], path: Iterable[str]) -> Any:
    """Return a nested value, None where there is none."""
    value: Any = document
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def put_value(document: dict[str, Any], path: tuple[str, ...], value: Any) -> str:
    """Set a nested value; return the dotted name of a plain value that stands in the way, or ''."""
    table = document
    for depth, key in enumerate(path[:-1], start=1):
        below = table.setdefault(key, {})
        if not isinstance(below, dict):
            return ".".join(path[:depth])
        table = below
    table[path[-1]] = copy.deepcopy(value)
    return ""


def data_file(name: str, key: tuple[str, ...]) -> Path:
    """Return the path of the data file that a recipe's `key` names, packaged ones included."""
    if name == BUILTIN:
        return Path(str(files("ammd.pipeline").joinpath(DATA_FILES[key])))
    return Path(name)


def data_name(prepare: Mapping[str, Any], role: str) -> str:
    """Return what others may be told of where the texts of `role` are from: no folders of this machine."""
    if (task := prepare.get("task")) is not None:
        return f"task {Path(task).stem}"
    given: str = prepare[role]
    return given if given == BUILTIN else Path(given).name


def _parse(changes: Changes) -> Iterator[tuple[str, str, Any]]:
    """Yield the text of each change as given, its key and its value."""
    if isinstance(changes, Mapping):
        yield from (("", key, _as_toml(value)) for key, value in changes.items())
        return
    for text in changes:
        key, _, value = text.partition("=")
        yield text, key, parse_value(value.strip())


def _as_toml(value: object) -> Any:
    """Return a value of Python as TOML would have it: paths as text, tuples as lists."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {str(key): _as_toml(item) for key, item in value.items()}
    return [_as_toml(item) for item in value] if isinstance(value, list | tuple) else value


def packaged_recipes() -> tuple[str, ...]:
    """Return the names of the recipes that ship with the package."""
    return tuple(sorted(Path(file.name).stem for file in RECIPES.iterdir()))


def _read_text(path: Path | None) -> tuple[str, str, Path]:
    """Return what messages call a recipe, its text, and the folder at which relative paths start."""
    name = "quickstart" if path is None else str(path)
    if path is None or (name in packaged_recipes() and not path.is_file()):
        text = RECIPES.joinpath(f"{name}.toml").read_text(encoding="utf-8")
        return f"{name}.toml", text, Path.cwd()
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as exc:
        names = ", ".join(packaged_recipes())
        raise RecipeError(
            f"cannot read recipe `{path}`: {exc.strerror}", hint=f"packaged recipes: {names}", path=str(path)
        ) from exc
    except UnicodeDecodeError as exc:
        raise RecipeError(f"recipe `{path}` is not UTF-8 text", path=str(path)) from exc
    return str(path), text, path.resolve().parent


def _resolve_paths(document: dict[str, Any], folder: Path) -> None:
    for path in (*SOURCES, *DATA_FILES, *TEXTS, *FOLDERS):
        document.update(_resolve(document, path, folder))
    for path in TASKS:
        document.update(_resolve(document, path, folder, suffix=".toml"))


def _resolve(value: Any, path: tuple[str, ...], folder: Path, *, suffix: str = "") -> Any:
    """Return a value in which the path at `path` is absolute, in each item of every list on the way.

    A value without the suffix is the name of something that is packaged.
    """
    if isinstance(value, list):
        return [_resolve(item, path, folder, suffix=suffix) for item in value]
    if path:
        key, *below = path
        if not isinstance(value, dict) or key not in value:
            return value
        return {**value, key: _resolve(value[key], tuple(below), folder, suffix=suffix)}
    is_path = isinstance(value, str) and value and value.endswith(suffix)
    if not is_path or value.startswith(("hub:", "pypi:", BUILTIN)):
        return value
    try:
        return str((folder / Path(value).expanduser()).resolve())
    except (OSError, ValueError, RuntimeError):  # no path at all, which the look for the file says
        return value
