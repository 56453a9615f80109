"""What each number means, as docs/fields.md says it: `docs/generate.py` keeps the copy that goes with the package."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files

from markupsafe import Markup, escape

DEFINITIONS_NAME = "definitions.json"
CURVES = "distill/curves.jsonl"  # the one part that lies beside the summary


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """One row of a table of docs/fields.md."""

    id: str  # for links
    term: str  # Markdown, names in backticks
    meaning: str  # Markdown

    @property
    def fields(self) -> tuple[str, ...]:
        """The names that it defines; `*` stands for any part of one."""
        return tuple(re.findall(r"`([^`]+)`", self.term))


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """Definitions under one heading."""

    title: str  # Markdown; names in backticks say which part of the summary it is about
    definitions: tuple[Definition, ...]

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts of the summary that it is about; none: the run as a whole."""
        return tuple(re.findall(r"`([^`]+)`", self.title))


class Definitions:
    """Those of the sections that a page is about."""

    def __init__(self, sections: Iterable[Section]) -> None:
        """Take the sections in their order."""
        self.sections = tuple(sections)

    def link(self, part: str, field: str) -> str:
        """Return the id of what defines `field` of a part of the summary, `""` of the run; empty if nothing does."""
        for section in self.sections:
            if (part in section.parts) if part else not section.parts:
                for definition in section.definitions:
                    if any(_matches(name, field) for name in definition.fields):
                        return definition.id
        return ""


def read_definitions(parts: Iterable[str]) -> Definitions:
    """Return the definitions of the run as a whole and of `parts` of its summary."""
    text = files("ammd.pipeline").joinpath(DEFINITIONS_NAME).read_text(encoding="utf-8")
    wanted = set(parts)
    sections = [
        Section(
            title=section["title"],
            definitions=tuple(
                Definition(id=f"def-{number}-{index}", term=row[0], meaning=row[1])
                for index, row in enumerate(section["rows"])
            ),
        )
        for number, section in enumerate(json.loads(text))
    ]
    return Definitions(one for one in sections if not one.parts or not wanted.isdisjoint(one.parts))


def markup_of(markdown: str) -> Markup:
    """Return a line of Markdown for a page: names as code, links as their words."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", markdown.replace("\\|", "|"))
    pieces = [
        Markup("<code>{}</code>").format(piece) if index % 2 else escape(piece)
        for index, piece in enumerate(text.split("`"))
    ]
    return Markup("").join(pieces)


def _matches(pattern: str, field: str) -> bool:
    return re.fullmatch(".*".join(map(re.escape, pattern.split("*"))), field) is not None
