"""Write docs/api.md from docstrings, docs/cli.md from the command line's own help, docs/recipe.md from the settings.

And what docs/fields.md says of each number as the JSON that goes with the package, for the report.
`python docs/generate.py` writes; with `--check` nothing is written, and the exit code says whether the files on disk
are the ones that would be.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import click
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

import ammd
from ammd.pipeline import api
from ammd.pipeline.cli import ammd_command
from ammd.pipeline.definitions import DEFINITIONS_NAME
from ammd.pipeline.faults import models_in
from ammd.pipeline.recipe import Recipe

FOLDER = Path(__file__).resolve().parent
WIDTH = 100  # of help texts, whatever terminal this runs in
MADE = "<!-- Made by docs/generate.py; `make docs` writes it anew. -->\n\n"


def main(arguments: list[str]) -> int:
    """Write or check all; return 1 if a check found one out of date."""
    pages = {
        FOLDER / "api.md": api_page(),
        FOLDER / "cli.md": cli_page(),
        FOLDER / "recipe.md": recipe_page(),
        FOLDER.parent / "pipeline" / DEFINITIONS_NAME: definitions((FOLDER / "fields.md").read_text("utf-8")),
    }
    if "--check" not in arguments:
        for path, text in pages.items():
            path.write_text(text, encoding="utf-8")
        return 0
    stale = [
        path.name
        for path, text in pages.items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]
    for name in stale:
        sys.stderr.write(f"{name} is out of date: run `make docs`\n")
    return int(bool(stale))


def api_page() -> str:
    """Return the reference of the functions that `import ammd` offers, from their docstrings."""
    introduction = " ".join((api.__doc__ or "").split("\n\n", 1)[1].split())
    parts = [
        f"{MADE}# From Python\n\n{introduction}\n\nThe examples follow on each other, after\n",
        "```python\nimport json\nimport sys\nfrom pathlib import Path\n\nimport ammd\n```\n",
    ]
    functions = [getattr(api, name) for name in ammd.__all__ if name != "errors"]
    for function in sorted(functions, key=lambda one: (one.__module__, one.__code__.co_firstlineno)):
        parts.append(_function_section(function))
    return "\n".join(parts)


def _function_section(function: Callable[..., Any]) -> str:
    """Return a function's signature, example, description and lists, from a docstring in Google's form."""
    text, *sections = re.split(r"\n\n(?=[A-Z][a-z]+:\n)", inspect.getdoc(function) or "")
    blocks = {head: body for head, _, body in (section.partition(":\n") for section in sections)}
    signature = _signature_text(function)
    lines = [f"## ammd.{function.__name__}", f"```python\n{textwrap.dedent(blocks['Example']).strip()}\n```"]
    lines += [text, f"```text\n{signature}\n```"]
    for head in ("Args", "Returns", "Raises"):
        body = textwrap.dedent(blocks.get(head, ""))
        if head == "Returns":
            lines.append(f"Returns {' '.join(body.split())}")
            continue
        items = re.findall(r"^(\w+): (.*(?:\n[ ].*)*)", body, flags=re.MULTILINE)
        rows = [f"| `{name}` | {' '.join(meaning.split())} |" for name, meaning in items]
        heading = "argument" if head == "Args" else "raises"
        lines.append("\n".join([f"| {heading} | |", "| --- | --- |", *rows]))
    return "\n\n".join(lines) + "\n"


def _signature_text(function: Callable[..., Any]) -> str:
    """Return the signature with a line for each argument."""
    signature = inspect.signature(function)
    arguments, is_named = [], False
    for argument in signature.parameters.values():
        if argument.kind is argument.KEYWORD_ONLY and not is_named:
            arguments.append("*")
            is_named = True
        default = "" if argument.default is argument.empty else f" = {argument.default!r}"
        arguments.append(f"{argument.name}: {argument.annotation}{default}")
    inside = "".join(f"    {argument},\n" for argument in arguments)
    return f"{function.__name__}(\n{inside}) -> {signature.return_annotation}"


def cli_page() -> str:
    """Return the reference of all commands: their help, word for word."""
    parts = [
        MADE
        + "# Commands\n\nStandard output is data, everything else goes to standard error. Exit codes: 0 fine, "
        "2 recipe or usage, 3 file missing or altered,\n4 distillation, 5 export or parity, 6 engine or device, "
        "7 budget or regression, 130 interrupted.\n"
    ]
    top = click.Context(ammd_command, info_name="ammd", max_content_width=WIDTH, terminal_width=WIDTH)
    parts.append(_help_section("ammd", ammd_command, top))
    for name, command in ammd_command.commands.items():
        context = click.Context(command, info_name=name, parent=top, terminal_width=WIDTH)
        parts.append(_help_section(f"ammd {name}", command, context))
        for below, part in getattr(command, "commands", {}).items():
            inner = click.Context(part, info_name=below, parent=context, terminal_width=WIDTH)
            parts.append(_help_section(f"ammd {name} {below}", part, inner))
    return "\n".join(parts)


def recipe_page() -> str:
    """Return the reference of all recipe keys: type, default and meaning, from the models."""
    parts = [
        MADE
        + "# Recipe\n\nA recipe is a TOML file; `ammd run --dry-run` prints the packaged one with every key. "
        "Paths are relative to the recipe's folder,\nthose given with `--set` to the current one. "
        "A list where one value belongs is a sweep ([sweeps.md](sweeps.md)).\n"
    ]
    for path, choice, model in _tables("", "", Recipe):
        heading = f"## [{path}]{choice}" if path else "## Top level"
        parts.append(
            f"{heading}\n\n{_first_paragraph(model)}\n\n| key | type | default | meaning |\n| --- | --- | --- | --- |"
        )
        for name, field in model.model_fields.items():
            meaning = " ".join((field.description or "").split())
            cells = (f"`{name}`", _type_text(field), _default_text(field), meaning)
            parts.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        parts.append("")
    return "\n".join(parts).rstrip() + "\n"


def definitions(page: str) -> str:
    """Return the tables of `field` and `meaning` under each heading of docs/fields.md as JSON."""
    found = []
    for part in re.split(r"^## ", page, flags=re.MULTILINE)[1:]:
        title, *lines = part.splitlines()
        rows: list[list[str]] = []
        inside = False
        for line in lines:
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            if len(cells) == 2 and cells[1] == "meaning":
                inside = True
            elif not cells:
                inside = False
            elif inside and set("".join(cells)) != {"-"}:
                rows.append(cells)
        if rows:
            found.append({"title": title, "rows": rows})
    return json.dumps(found, ensure_ascii=False, indent=1) + "\n"


def _help_section(title: str, command: click.Command, context: click.Context) -> str:
    return f"## {title}\n\n```text\n{command.get_help(context)}\n```\n"


def _tables(path: str, choice: str, model: type[BaseModel]) -> Iterator[tuple[str, str, type[BaseModel]]]:
    """Yield each table's dotted path, the kind that it is of, and its model."""
    yield path, choice, model
    for name, field in model.model_fields.items():
        members = list(models_in(field.annotation))
        below = f"{path}.{name}" if path else name
        if get_origin(field.annotation) is Mapping:
            below += ".NAME"
        for member in members:
            kind = "" if len(members) == 1 else f", kind = {member.model_fields['kind'].default}"
            yield from _tables(below, kind, member)


def _type_text(field: FieldInfo) -> str:
    if list(models_in(field.annotation)):
        return "section"
    limits = [
        f"{sign} {getattr(mark, name)}"
        for mark in field.metadata
        for name, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<"))
        if hasattr(mark, name)
    ]
    return ", ".join([_annotation_text(field.annotation), *limits])


def _annotation_text(annotation: Any) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(f'`"{part}"`' for part in parts)
    if origin is Annotated:
        return _annotation_text(parts[0])
    if origin in (tuple, list):
        return f"list of {_annotation_text(parts[0])}"
    if origin in (dict, Mapping):
        return f"table of {_annotation_text(parts[1])}"
    if origin is not None:
        return " or ".join(_annotation_text(part) for part in parts if part is not type(None))
    if hasattr(annotation, "__members__"):
        return " or ".join(f'`"{member.value}"`' for member in annotation)
    return {"str": "string", "int": "integer", "float": "number", "bool": "boolean"}[annotation.__name__]


def _default_text(field: FieldInfo) -> str:
    default = field.default
    if default == {}:
        return "empty"
    if list(models_in(field.annotation)) and default is not None:
        return "" if field.is_required() else "the section's own"
    if field.is_required() or default is PydanticUndefined:
        return "required"
    if default is None:
        return "absent"
    return f"`{_value_text(default)}`"


def _value_text(value: Any) -> str:
    from ammd.pipeline.toml_text import write_toml

    if isinstance(value, dict):
        return ", ".join(f"{key} = {item}" for key, item in value.items())
    return write_toml({"x": value}).removeprefix("x = ").strip()


def _first_paragraph(model: type[BaseModel]) -> str:
    return " ".join((model.__doc__ or "").split("\n\n")[0].split())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
