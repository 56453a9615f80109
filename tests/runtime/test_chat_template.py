from __future__ import annotations

import pytest

from ammd.errors import EngineError
from ammd.runtime.chat_template import render_chat_template

MESSAGES = [{"role": "user", "content": "<b>é"}]


def render(template: str) -> str:
    return render_chat_template(
        template, MESSAGES, special_tokens={"bos_token": "<s>"}, add_generation_prompt=True
    )


def test_block_lines_leave_no_whitespace() -> None:
    loop = "{% for m in messages %}\n  {% if true %}\n[{{ m.content }}]\n  {% endif %}\n{% endfor %}"
    assert render("{{ bos_token }}" + loop) == "<s>[<b>é]\n"


def test_json_filter_keeps_characters() -> None:
    assert render("{{ messages | tojson }}") == '[{"role": "user", "content": "<b>é"}]'


def test_break_and_generation_prompt_are_known() -> None:
    template = "{% for m in messages %}{% break %}{% endfor %}{% if add_generation_prompt %}a{% endif %}"
    assert render(template) == "a"


def test_date_function_is_known() -> None:
    assert len(render("{{ strftime_now('%Y') }}")) == 4


def test_template_refusal_becomes_one_line() -> None:
    with pytest.raises(EngineError, match="refuses these messages: no system"):
        render("{{ raise_exception('no system') }}")


def test_template_cannot_reach_the_machine() -> None:
    with pytest.raises(EngineError, match="refuses"):
        render("{{ messages.__class__.__mro__ }}")
