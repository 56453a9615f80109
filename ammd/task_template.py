"""A task's prompt as a template: `{source}` stands for a field of a row, `{translation.en}` for a field within one.

`{{` and `}}` are braces. This is not `str.format`, whose templates reach into objects: a name is looked up in the row
and nowhere else, and what the row holds is put in as it is, braces and all.
"""

from __future__ import annotations

import re
import string
from collections.abc import Mapping
from typing import Any

_FIELD = re.compile(r"[^\W_][\w-]*(\.[^\W_][\w-]*)*")


def parse_template(template: str) -> tuple[tuple[str, str | None], ...]:
    """Return texts, each with the field that follows it, None where nothing does.

    Raises:
        ValueError: A brace has no partner, or between two stands something else than a field's name.
    """
    parts = []
    for text, field, form, conversion in string.Formatter().parse(template):
        if field is not None:
            if form or conversion:
                raise ValueError(f"`{{{field}}}` takes no conversion and no format, only the field's name")
            check_field(field)
        parts.append((text, field))
    return tuple(parts)


def check_field(name: str) -> str:
    """Return `name` if it is a field's name: letters, digits, `_` and `-`, with dots between fields within fields.

    Raises:
        ValueError: It is not.
    """
    if not _FIELD.fullmatch(name):
        raise ValueError(f"`{name}` is no plain name of a field, as `source` or `translation.en` is")
    return name


def fill(template: str, row: Mapping[str, Any]) -> str:
    """Return the template with the row's fields in their places.

    Raises:
        KeyError: The row has no such field.
        TypeError: A field is neither text nor a whole number.
    """
    return "".join(
        text + ("" if field is None else as_text(look_up(row, field), field))
        for text, field in parse_template(template)
    )


def look_up(row: Mapping[str, Any], field: str) -> Any:
    """Return a field's value, which a dotted name finds in the mappings that a row holds.

    Raises:
        KeyError: The row has no such field.
    """
    value: Any = row
    for key in field.split("."):
        if not isinstance(value, Mapping) or key not in value:
            raise KeyError(field)
        value = value[key]
    return value


def as_text(value: Any, field: str) -> str:
    """Return a text as it is and a whole number in digits.

    Raises:
        TypeError: It is neither.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise TypeError(field)
