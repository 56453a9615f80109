"""A page of the report: one file that asks nothing of the network and runs only its own script.

The template escapes all text of models, recipes and logs; only drawings made here go in as markup. A policy in the
page's head forbids every script but its own, by the hash, so that what a model writes cannot run even if it got in.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from .definitions import markup_of

SERIES = 8  # colours that the style sheet has
GENERATOR = "ammd report"  # tells our pages from others


@dataclass(frozen=True, slots=True, kw_only=True)
class Heading:
    """Head of a column."""

    title: str
    unit: str = ""
    meaning: str = ""  # id of its definition on the page


@dataclass(frozen=True, slots=True, kw_only=True)
class PageTable:
    """A table; the first cell of each row is its head."""

    title: str
    headings: tuple[Heading, ...]
    rows: tuple[tuple[str, ...], ...]
    row_meanings: tuple[str, ...] = ()  # of each row, where rows are numbers: id of its definition
    marks: tuple[
        tuple[str, int], ...
    ] = ()  # of each row, as it stands in a plot: label and number of its colour
    is_text: bool = False  # cells hold words and may take several lines


def render_page(template: str, **values: Any) -> str:
    """Return the page that `template` makes of `values`."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(read_part),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["words"] = markup_of
    script = read_part("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    return environment.get_template(template).render(
        **values,
        generator=GENERATOR,
        policy=policy,
        script=Markup(script),
        style=Markup(read_part("report.css")),
    )


def text_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]]) -> PageTable:
    """Return a table of words."""
    return PageTable(
        title=title,
        headings=tuple(Heading(title=heading) for heading in headings),
        rows=tuple(tuple(row) for row in rows),
        is_text=True,
    )


@cache
def read_part(name: str) -> str:
    """Return a template, script or style sheet of the package."""
    return files("ammd.pipeline").joinpath(name).read_text(encoding="utf-8")
