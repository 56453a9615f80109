"""Render a chat through a Jinja template as transformers does, without importing transformers.

A GGUF stores the template as text and leaves the rendering to the application; the whitespace rules, the
extensions and the two functions below are those that published templates are written for. They run in
Jinja's sandbox: a template comes with a downloaded model and must not reach the machine.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import NoReturn

from ammd.conversations import source_text
from ammd.errors import EngineError


def render_chat_template(
    template: str,
    messages: Sequence[Mapping[str, str]],
    *,
    special_tokens: Mapping[str, str],
    add_generation_prompt: bool,
) -> str:
    """Return the rendered chat.

    Args:
        template: Jinja source.
        messages: `role` and `content` of each turn.
        special_tokens: What the template may name, such as `bos_token`.
        add_generation_prompt: End with the opening of the assistant's turn.

    Raises:
        EngineError: The template is not valid, or refuses these messages.
    """
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    # Jinja's own filter escapes HTML characters; templates want plain JSON.
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda pattern: datetime.datetime.now().strftime(pattern)
    try:
        return environment.from_string(template).render(
            messages=[dict(message) for message in messages],
            add_generation_prompt=add_generation_prompt,
            **special_tokens,
        )
    except jinja2.TemplateError as exc:
        raise EngineError(f"the chat template refuses these messages: {exc}") from exc


def render_source(messages: Sequence[Mapping[str, str]], *, end_token: str) -> str:
    """Return what an encoder-decoder without a template reads: the last question by itself, the end token behind it.

    It knows nothing of what was said before.
    """
    texts = [message for message in messages if message["role"] != "assistant"]
    opening = [message for message in texts[:-1] if message["role"] == "system"]
    return source_text([*map(dict, opening), dict(texts[-1])]) + end_token


def _to_json(value: object, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> NoReturn:
    import jinja2

    raise jinja2.TemplateError(message)
