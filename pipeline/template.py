"""Test templates: prompts, what is checked of the answers, and the slices that are looked at one by one.

A template is a TOML file, from the package (`ammd/pipeline/templates/`) or of a project:

    extends = "format"      # a packaged template or a file beside this one; what is given here replaces its keys
    add_prompts = [{ prompt = "List three colours." }]

`prompts` are tables, or the name of a JSONL file with the same keys, beside the template.
"""

from __future__ import annotations

import json
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StringConstraints, ValidationError, model_validator

from ammd.errors import RecipeError
from ammd.settings import Settings

from .faults import describe_faults, faults_of, find_fault_lines
from .template_checks import NEED_TEACHER, Check

Text = Annotated[str, StringConstraints(min_length=1)]
SHORT_WORDS, LONG_WORDS = 10, 40  # a prompt of at most the first is short, of more than the second long
_MOST_EXTENDED = 8


class Prompt(Settings):
    """One prompt of a template."""

    prompt: Text
    system: str | None = None
    """System message before it."""
    category: str | None = None
    language: str | None = None
    expected: tuple[Text, ...] = ()
    """Texts of which one should occur in the answer."""

    @property
    def length(self) -> str:
        """Its slice by length."""
        words = len(self.prompt.split())
        return "short" if words <= SHORT_WORDS else "medium" if words <= LONG_WORDS else "long"

    @property
    def chat(self) -> list[dict[str, str]]:
        """Its messages."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": self.prompt}]


class Template(Settings):
    """A set of prompts with checks."""

    description: str = ""
    max_tokens: int = Field(default=96, ge=1)
    """Longest answer."""
    prompts: Annotated[tuple[Prompt, ...], Field(min_length=1)]
    checks: Annotated[tuple[Check, ...], Field(min_length=1)]
    slices: tuple[Literal["category", "language", "length"], ...] = ()
    """Groups of prompts that are judged one by one besides all together."""

    @model_validator(mode="after")
    def _can_be_told_apart(self) -> Self:
        labels = [check.label for check in self.checks]
        if twice := [label for label in labels if labels.count(label) > 1]:
            raise ValueError(f"two checks are called `{twice[0]}`: give one of them a `name`")
        return self

    @property
    def needs_teacher(self) -> bool:
        """A check looks at the teacher's answers."""
        return any(isinstance(check, NEED_TEACHER) for check in self.checks)


def template_names() -> list[str]:
    """Return the packaged templates."""
    folder = files("ammd.pipeline").joinpath("templates")
    return sorted(
        entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml")
    )


def load_template(name: str) -> Template:
    """Read a template by a packaged name or a path.

    Raises:
        RecipeError: There is none, it is not TOML, or lists every fault in it.
    """
    document, label, text = _read(name, beside=Path.cwd(), depth=0)
    try:
        return Template.model_validate(document)
    except ValidationError as exc:
        faults = find_fault_lines(faults_of(exc, Template), text=text, changed=frozenset())
        raise RecipeError(
            describe_faults(faults, label=label), hint="docs/templates.md lists every key and check"
        ) from exc


def _read(name: str, *, beside: Path, depth: int) -> tuple[dict[str, Any], str, str]:
    """Return a template's document with what it extends, what messages call it, and its own text."""
    path = beside / name
    is_file = name.endswith(".toml")
    if not is_file and name not in template_names():
        raise RecipeError(
            f"there is no template `{name}`",
            hint=f"a path that ends in .toml, or one of {', '.join(template_names())}",
        )
    source = path if is_file else Path(str(files("ammd.pipeline").joinpath("templates", f"{name}.toml")))
    try:
        text = source.read_text(encoding="utf-8")
        document = tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as exc:
        raise RecipeError(f"cannot read template `{name}`: {exc}", path=str(source)) from exc
    except (tomllib.TOMLDecodeError, RecursionError) as exc:
        raise RecipeError(f"`{name}` is not TOML: {exc}", path=str(source)) from exc
    for key in ("prompts", "add_prompts"):
        if isinstance(document.get(key), str):
            document[key] = _read_prompts(source.parent / document[key])
    added = {key: document.pop(f"add_{key}", []) for key in ("prompts", "checks")}
    if (base := document.pop("extends", None)) is not None:
        if depth == _MOST_EXTENDED:
            raise RecipeError(f"`{name}` extends itself, or too many others", path=str(source))
        document = _read(str(base), beside=source.parent, depth=depth + 1)[0] | document
    for key, rows in added.items():
        if rows:
            document[key] = _joined(document.get(key, []), rows, key=f"add_{key}", label=name)
    return document, name, text


def _joined(base: Any, rows: Any, *, key: str, label: str) -> list[Any]:
    if not isinstance(rows, list) or not isinstance(base, list):
        raise RecipeError(f"`{key}` should be a list in `{label}`")
    return [*base, *rows]


def _read_prompts(path: Path) -> list[Any]:
    """Return the rows of a JSONL file.

    Raises:
        RecipeError: It is not there, or a line is not JSON.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as exc:
        raise RecipeError(f"cannot read the prompts in `{path}`: {exc}", path=str(path)) from exc
    rows = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except (ValueError, RecursionError) as exc:
                raise RecipeError(f"`{path}:{number}` is not JSON: {exc}", path=str(path)) from exc
    return rows
