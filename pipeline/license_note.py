"""What is known of the licences that a student's files are under, as sentences; unknown is said, nothing is guessed."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping
from typing import Any

from .recipe_document import BUILTIN

# What a licence asks of who passes changed files on; of any other, only that it is to be read.
_DUTIES = {
    "apache-2.0": "Who passes the files on has to give a copy of that licence with them, to keep the notices of "
    "copyright, patents and attribution, those in a NOTICE file among them, and to say that the files were changed. "
    "They were: the weights of the base model were cut or trained, and then converted or quantized.",
    "mit": "Who passes the files on has to keep its notice of copyright and its text with them.",
}


def license_lines(
    *, base: Mapping[str, Any] | None, teacher: Mapping[str, Any] | None, prompts: str
) -> list[str]:
    """Return paragraphs on base model, teacher, data and this program.

    Args:
        base: Whose weights the student began with, as the run recorded it.
        teacher: The teacher, likewise.
        prompts: The recipe's training data.
    """
    lines = [_model(base, "base model")]
    if teacher and teacher != base:
        lines.append(f"{_model(teacher, 'teacher')} Its answers are what the student was trained on.")
    if prompts == BUILTIN:
        lines.append("The training prompts were written for ammd and are under its licence, Apache-2.0.")
    else:
        lines.append("Licence of the training data: unknown to ammd, whoever chose the data has to know it.")
    return [*lines, "This is a record of what is stated, not legal advice."]


def license_text(base: Mapping[str, Any] | None) -> str | None:
    """Return the text of the base model's licence where this package has it: of Apache-2.0, which is its own."""
    stated = (base or {}).get("license")
    if not stated or stated["id"] != "apache-2.0":
        return None
    # More than one is found where the program is run from its own sources; not each of them has the text.
    found = importlib.metadata.distributions(name="ammd")
    return next((text for one in found if (text := one.read_text("licenses/LICENSE"))), None)


def _model(model: Mapping[str, Any] | None, role: str) -> str:
    if model is None:
        return f"Licence of the {role}: unknown, the run has no record of it."
    found = model["license"]
    if found is None:
        return (
            f"Licence of the {role}, {model['name']}: unknown, its files state none. Ask its owner before you pass "
            "anything on."
        )
    name = found["name"] or found["id"]
    link = f", {found['link']}" if found["link"] else ""
    duties = _DUTIES.get(
        found["id"], "What it asks of who uses or passes on the files stands there: read it."
    )
    return f"The {role}, {model['name']}, states its licence as `{name}`{link}. {duties}"
