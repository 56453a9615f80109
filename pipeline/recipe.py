"""The recipe: one TOML file that says which student to make from which teacher, and how to judge it.

Each stage folder owns the settings of its section; this module composes them, hands the top-level seed to the
sections that draw random numbers, and reports every fault at once.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import Field, StringConstraints, ValidationError

from ammd.artifact import is_there
from ammd.distill.one_tokenizer import needs_one_tokenizer
from ammd.distill.settings import DistillSettings, PrepareSettings
from ammd.distill.track_settings import TrackSettings, missing_packages
from ammd.errors import RecipeError
from ammd.export.schemes import STANDARD_SCHEMES
from ammd.export.settings import ExportSettings, OnnxSettings
from ammd.runtime.settings import BenchSettings, EvaluateSettings, VerifySettings
from ammd.settings import Settings

from .budget_settings import BudgetSettings
from .faults import Fault, describe_faults, faults_of, find_fault_lines
from .recipe_document import (
    DATA_FILES,
    SOURCES,
    TEXTS,
    Changes,
    Draft,
    apply_changes,
    data_file,
    get_value,
    read_draft,
)
from .task_inputs import default_response_tokens, find_task_faults

_Section = TypeVar("_Section", bound=Settings)
_READ_TASKS = (
    ("prepare", "task"),
    ("evaluate", "tasks"),
)  # sections that read tasks, and the key that names them
_SEEDED = ("prepare", "distill", "evaluate")  # sections that draw random numbers


class Recipe(Settings):
    """A whole run. Every section but `prepare` may be left out; its defaults then stand."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Folder below the runs folder in which the runs of this recipe lie."""
    seed: int = Field(default=0, ge=0)
    """Start of every random choice; a section's own `seed` goes before it."""
    data: Annotated[str, StringConstraints(min_length=1)] | None = None
    """Folder in which tasks find their data; a section's own `data` goes before it."""
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
    track: TrackSettings = TrackSettings()
    """Programs that draw the training while it goes on."""
    budget: BudgetSettings | None = None
    """Limits of the files; absent, everything is published as it is."""


def load_recipe(path: Path | None = None, *, overrides: Changes = (), check_files: bool = True) -> Recipe:
    """Read, override, resolve and check a recipe.

    Args:
        path: A TOML file; None takes the packaged quickstart.
        overrides: `a.b=value` with a TOML value, a string may go without quotes; or values by dotted key.
        check_files: Also check that models, data files and exporters are there; a finished run needs them no more.

    Raises:
        RecipeError: The file is not there or not TOML, or lists every fault found in it.
    """
    draft = read_draft(path, overrides)
    recipe, faults = check_document(draft.document, check_files=check_files)
    faults += draft.faults
    if recipe is not None and not faults:
        return recipe
    raise refusal(draft, faults)


def check_document(
    document: dict[str, Any], *, check_files: bool = True
) -> tuple[Recipe | None, list[Fault]]:
    """Return the recipe that a document is, unless it is none, and everything that is wrong with it."""
    _hand_down(document)
    missing = _find_missing_files(document) if check_files else []
    try:
        recipe = Recipe.model_validate(document)
    except ValidationError as exc:
        return None, faults_of(exc, Recipe) + missing
    missing += _find_contradictions(recipe)
    if check_files:
        missing += _find_missing_exporter(recipe) + _find_missing_trackers(recipe)
    return recipe, missing


def refusal(draft: Draft, faults: Sequence[Fault]) -> RecipeError:
    """Return the error that names every fault in a recipe, each with its line."""
    placed = find_fault_lines(faults, text=draft.text, changed=draft.changed)
    return RecipeError(
        describe_faults(placed, label=draft.label),
        hint="`ammd run --dry-run` prints the packaged recipe with every key; docs/recipe.md explains each",
        faults=[fault.path for fault in placed],
    )


def load_section(
    model: type[_Section], overrides: Changes, *, defaults: Mapping[str, Any] | None = None
) -> _Section:
    """Return one section's settings: its defaults, other `defaults` before them, with overrides.

    Raises:
        RecipeError: Lists every fault found in the overrides.
    """
    document = dict(defaults or {})
    changed, faults = apply_changes(document, overrides)
    try:
        settings = model.model_validate(document)
    except ValidationError as exc:
        faults = faults_of(exc, model) + faults
    if not faults:
        return settings
    faults = find_fault_lines(faults, text="", changed=changed)
    raise RecipeError(describe_faults(faults, label="--set"), hint="docs/recipe.md lists every key")


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
    has_own = getattr(recipe.prepare.student, "tokenizer", "teacher") == "own"
    if has_own and (reason := needs_one_tokenizer(recipe.distill.objective)) is not None:
        path, kind = ("distill", "objective"), recipe.distill.objective.kind
        faults.append(Fault(path=path, value=kind, text=f"{reason[0]}; {reason[1]}"))
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


def _find_missing_trackers(recipe: Recipe) -> list[Fault]:
    return [
        Fault(path=("track", "trackers"), value=tracker, text=f"is not installed: `pip install {package}`")
        for tracker, package in missing_packages(recipe.track)
    ]


def _hand_down(document: dict[str, Any]) -> None:
    """Give the sections what the recipe says for all of them, and a training for a task the task's length."""
    _hand_down_seed(document)
    for section, key in _READ_TASKS:
        table = document.get(section)
        if isinstance(table, dict) and table.get(key) and document.get("data") is not None:
            table.setdefault("data", document["data"])
    prepare = document.get("prepare")
    if not isinstance(prepare, dict) or "task" not in prepare:
        return
    if (longest := default_response_tokens(prepare["task"])) is not None:
        prepare.setdefault("response_tokens", longest)


def _hand_down_seed(document: dict[str, Any]) -> None:
    seed = document.get("seed")
    if not isinstance(seed, int) or seed < 0:
        return  # absent, or a fault that is reported once, where it stands
    for section in _SEEDED:
        table = document.setdefault(section, {})
        if isinstance(table, dict):
            table.setdefault("seed", seed)


def _is_file(path: Path) -> bool:
    return is_there(path) and path.is_file()


def _find_missing_tasks(document: dict[str, Any]) -> list[Fault]:
    faults = []
    for section, key in _READ_TASKS:
        tasks, data = (get_value(document, (section, name)) for name in (key, "data"))
        for task in tasks if isinstance(tasks, list) else [tasks]:
            if isinstance(task, str) and isinstance(data, str | None):
                is_trained_on = section == "prepare"
                faults += find_task_faults((section, key), task, data, is_trained_on=is_trained_on)
    return faults


def _find_missing_files(document: dict[str, Any]) -> list[Fault]:
    from ammd.distill.source import check_source

    faults = []
    for path in SOURCES:
        value = get_value(document, path)
        try:
            if value == "":
                faults.append(Fault(path=path, value=value, text="names no model"))
            elif isinstance(value, str):
                check_source(value)
        except RecipeError as exc:
            faults.append(Fault(path=path, value=value, text=str(exc)))
    for path in DATA_FILES:
        value = get_value(document, path)
        if isinstance(value, str) and not _is_file(data_file(value, path)):
            faults.append(Fault(path=path, value=value, text="there is no such file"))
    faults += _find_missing_tasks(document)
    for path in TEXTS:
        texts = get_value(document, path)
        for text in texts if isinstance(texts, list) else ():
            if isinstance(text, str) and not _is_file(Path(text)):
                faults.append(Fault(path=path, value=text, text="there is no such file"))
    return faults
