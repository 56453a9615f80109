"""The recipe: one TOML file that says which student to make from which teacher, and how to judge it.

Each stage folder owns the settings of its section; this module composes them, applies `--set`, makes paths
absolute, hands the top-level seed to the sections that draw random numbers, and reports every fault at once.
Paths in a recipe are relative to the recipe's own folder, those in `--set` to the current one, so that a
recipe can be moved with its data and a shell's completion works. `builtin:quickstart` names the prompt files
that ship with the package.
"""

from __future__ import annotations

import copy
import difflib
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, StringConstraints, ValidationError

from ammd.distill.settings import DistillSettings, PrepareSettings
from ammd.errors import RecipeError
from ammd.export.schemes import STANDARD_SCHEMES
from ammd.export.settings import ExportSettings, OnnxSettings
from ammd.runtime.settings import BenchSettings, EvaluateSettings, VerifySettings
from ammd.settings import Settings

from .budget_settings import BudgetSettings
from .faults import Fault, describe_faults, faults_of, find_fault_lines
from .toml_text import parse_value

BUILTIN = "builtin:quickstart"
# Keys that name a model, and keys that name a data file with its name inside the package.
SOURCES: tuple[tuple[str, ...], ...] = (("prepare", "teacher"), ("prepare", "student", "source"))
DATA_FILES: Mapping[tuple[str, ...], str] = {
    ("prepare", "prompts"): "quickstart_train.jsonl",
    ("prepare", "heldout"): "quickstart_heldout.jsonl",
}
TEXTS = (("prepare", "vocabulary", "texts"), ("export", "imatrix", "texts"))  # keys with lists of data files
_Section = TypeVar("_Section", bound=Settings)
_SEEDED = ("prepare", "distill", "evaluate")  # sections that draw random numbers


class Recipe(Settings):
    """A whole run. Every section but `prepare` may be left out; its defaults then stand."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Folder below the runs folder in which the runs of this recipe lie."""
    seed: int = Field(default=0, ge=0)
    """Start of every random choice; a section's own `seed` goes before it."""
    prepare: PrepareSettings
    """Teacher, prompts, the teacher's responses, and the untrained student."""
    distill: DistillSettings = DistillSettings()
    """Training."""
    export: ExportSettings = ExportSettings()
    """Which files to write."""
    verify: VerifySettings = VerifySettings()
    """Proofs of each file against the student."""
    evaluate: EvaluateSettings = EvaluateSettings()
    """Quality on the held-out prompts."""
    bench: BenchSettings = BenchSettings()
    """Speed and memory."""
    budget: BudgetSettings | None = None
    """Limits of the files; absent, everything is published as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where a recipe's text came from."""

    label: str  # what messages call it
    text: str
    folder: Path  # relative paths start here


def load_recipe(
    path: Path | None = None, *, overrides: Sequence[str] = (), check_files: bool = True
) -> Recipe:
    """Read, override, resolve and check a recipe.

    Args:
        path: A TOML file; None takes the packaged quickstart.
        overrides: `a.b=value` with a TOML value; a string may go without quotes.
        check_files: Also check that models, data files and exporters are there; a finished run needs them no more.

    Raises:
        RecipeError: The file is not there or not TOML, or lists every fault found in it.
    """
    origin = _read_origin(path)
    try:
        document = tomllib.loads(origin.text)
    except tomllib.TOMLDecodeError as exc:
        raise RecipeError(f"`{origin.label}` is not TOML: {exc}", path=origin.label) from exc
    _resolve_paths(document, origin.folder)
    changed, faults = _apply_overrides(document, overrides)
    _hand_down_seed(document)
    if check_files:
        faults += _find_missing_files(document)
    try:
        recipe = Recipe.model_validate(document)
    except ValidationError as exc:
        faults = faults_of(exc, Recipe) + faults
    else:
        faults += _find_contradictions(recipe)
        if check_files:
            faults += _find_missing_exporter(recipe)
    if not faults:
        return recipe
    faults = find_fault_lines(faults, text=origin.text, changed=changed)
    raise RecipeError(
        describe_faults(faults, label=origin.label),
        hint="`ammd run --dry-run` prints the packaged recipe with every key; docs/recipe.md explains each",
        faults=[fault.path for fault in faults],
    )


def load_section(model: type[_Section], overrides: Sequence[str]) -> _Section:
    """Return one section's settings: its defaults with `key=value` overrides.

    Raises:
        RecipeError: Lists every fault found in the overrides.
    """
    document: dict[str, Any] = {}
    changed, faults = _apply_overrides(document, overrides)
    try:
        settings = model.model_validate(document)
    except ValidationError as exc:
        faults = faults_of(exc, model) + faults
    if not faults:
        return settings
    faults = find_fault_lines(faults, text="", changed=changed)
    raise RecipeError(describe_faults(faults, label="--set"), hint="docs/recipe.md lists every key")


def data_file(name: str, key: tuple[str, ...]) -> Path:
    """Return the path of the data file that a recipe's `key` names, packaged ones included."""
    if name == BUILTIN:
        return Path(str(files("ammd.pipeline").joinpath(DATA_FILES[key])))
    return Path(name)


def _find_contradictions(recipe: Recipe) -> list[Fault]:
    """Return what is wrong between sections, each of which is right by itself."""
    faults = []
    trained_for, made = recipe.distill.quantize_as, recipe.export.schemes
    if trained_for is not None and trained_for not in made:
        text = f"should be one of `export.schemes`, {', '.join(f'`{scheme}`' for scheme in made)}"
        faults.append(Fault(path=("distill", "quantize_as"), value=trained_for, text=text))
    if trained_for == "onnx-int4" and recipe.export.onnx != OnnxSettings():
        text = "rounds as the defaults of `export.onnx` do: leave those keys out"
        faults.append(Fault(path=("distill", "quantize_as"), value=trained_for, text=text))
    if trained_for == "gguf-q4_0" and recipe.export.imatrix is not None:
        text = "rounds as without an importance matrix: leave `export.imatrix` out"
        faults.append(Fault(path=("distill", "quantize_as"), value=trained_for, text=text))
    stages, steps = getattr(recipe.prepare.student, "stages", 1), recipe.distill.warm.steps
    if steps < stages:
        text = f"should be at least {stages}, a step for each of `prepare.student.stages`"
        faults.append(Fault(path=("distill", "warm", "steps"), value=steps, text=text))
    for name in recipe.budget.files if recipe.budget else ():
        if name not in made:
            near = difflib.get_close_matches(name, made, n=1, cutoff=0)[0]
            text = f"limits a file that `export.schemes` does not name, the nearest is `{near}`"
            faults.append(Fault(path=("budget", "files", name), text=text))
    return faults


def _find_missing_exporter(recipe: Recipe) -> list[Fault]:
    """Return a fault where the recipe wants files whose exporter is not installed, before anything is trained."""
    from ammd.export.optimum_exporter import missing_exporter

    wanted = [scheme for scheme in recipe.export.schemes if scheme in STANDARD_SCHEMES]
    if not wanted or (fault := missing_exporter()) is None:
        return []
    text = f"cannot be made here: {fault[0]}; {fault[1]}"
    return [Fault(path=("export", "schemes"), value=wanted[0].value, text=text)]


def _read_origin(path: Path | None) -> Origin:
    if path is None:
        text = files("ammd.pipeline").joinpath("quickstart.toml").read_text(encoding="utf-8")
        return Origin(label="quickstart.toml", text=text, folder=Path.cwd())
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as exc:
        raise RecipeError(f"cannot read recipe `{path}`: {exc.strerror}", path=str(path)) from exc
    except UnicodeDecodeError as exc:
        raise RecipeError(f"recipe `{path}` is not UTF-8 text", path=str(path)) from exc
    return Origin(label=str(path), text=text, folder=path.resolve().parent)


def _apply_overrides(
    document: dict[str, Any], overrides: Sequence[str]
) -> tuple[frozenset[tuple[str, ...]], list[Fault]]:
    changed, faults = set(), []
    for override in overrides:
        dotted, equals, text = override.partition("=")
        path = tuple(dotted.strip().split("."))
        if not equals or not all(path):
            faults.append(Fault(path=("--set",), value=override, text="should have the form `a.b=value`"))
            continue
        if blocked := _put(document, path, parse_value(text.strip())):
            faults.append(Fault(path=path, value=text, text=f"`{blocked}` is a value, not a section"))
            continue
        # Resolved one at a time: the recipe's own paths are absolute already and stay as they are.
        _resolve_paths(document, Path.cwd())
        changed.add(path)
    return frozenset(changed), faults


def _put(document: dict[str, Any], path: tuple[str, ...], value: Any) -> str:
    """Set a nested value; return the dotted name of a plain value that stands in the way, or ''."""
    table = document
    for depth, key in enumerate(path[:-1], start=1):
        below = table.setdefault(key, {})
        if not isinstance(below, dict):
            return ".".join(path[:depth])
        table = below
    table[path[-1]] = copy.deepcopy(value)
    return ""


def _get(document: dict[str, Any], path: tuple[str, ...]) -> Any:
    value: Any = document
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _resolve_paths(document: dict[str, Any], folder: Path) -> None:
    for path in (*SOURCES, *DATA_FILES):
        value = _get(document, path)
        if isinstance(value, str) and value and not value.startswith(("hub:", "pypi:", BUILTIN)):
            _put(document, path, _absolute(value, folder))
    for path in TEXTS:
        if isinstance(texts := _get(document, path), list):
            _put(
                document, path, [_absolute(text, folder) if isinstance(text, str) else text for text in texts]
            )


def _absolute(path: str, folder: Path) -> str:
    return str((folder / Path(path).expanduser()).resolve())


def _hand_down_seed(document: dict[str, Any]) -> None:
    seed = document.get("seed")
    if not isinstance(seed, int) or seed < 0:
        return  # absent, or a fault that is reported once, where it stands
    for section in _SEEDED:
        table = document.setdefault(section, {})
        if isinstance(table, dict):
            table.setdefault("seed", seed)


def _find_missing_files(document: dict[str, Any]) -> list[Fault]:
    from ammd.distill.source import check_source

    faults = []
    for path in SOURCES:
        value = _get(document, path)
        try:
            if value == "":
                faults.append(Fault(path=path, value=value, text="names no model"))
            elif isinstance(value, str):
                check_source(value)
        except RecipeError as exc:
            faults.append(Fault(path=path, value=value, text=str(exc)))
    for path in DATA_FILES:
        value = _get(document, path)
        if isinstance(value, str) and not data_file(value, path).is_file():
            faults.append(Fault(path=path, value=value, text="there is no such file"))
    for path in TEXTS:
        texts = _get(document, path)
        for text in texts if isinstance(texts, list) else ():
            if isinstance(text, str) and not Path(text).is_file():
                faults.append(Fault(path=path, value=text, text="there is no such file"))
    return faults
