"""Test templates: what they may say, what each check finds, and what two runs that answer them are told."""

import json

import pytest
from pydantic import TypeAdapter

from ammd.errors import RecipeError
from ammd.pipeline.template import Prompt, Template, load_template, template_names
from ammd.pipeline.template_checks import Check, Said

MINE = """\
extends = "no-degeneration"
max_tokens = 7
checks = [{ kind = "not_empty" }]
add_checks = [{ kind = "matches", pattern = "(?i)tea", category = "tea" }]
add_prompts = "more.jsonl"
"""


def said(text, *, ended=True, expected=(), teacher_text=None):
    return Said(text=text, ended=ended, expected=expected, teacher_text=teacher_text)


def score(check, *arguments, **options):
    return TypeAdapter(Check).validate_python(check).score(said(*arguments, **options))


def test_packaged_templates_are_whole_and_judge_more_than_chance():
    assert template_names() == ["format", "knowledge", "no-degeneration", "slices", "style"]
    for name in template_names():
        template = load_template(name)
        assert template.description
        for check in template.checks:
            asked = [p for p in template.prompts if check.category in (None, p.category)]
            assert len(asked) >= 5, (name, check.label)
        if "category" in template.slices:
            assert all(prompt.category for prompt in template.prompts)


def test_a_project_extends_a_template_in_a_few_lines(tmp_path, monkeypatch):
    (tmp_path / "mine.toml").write_text(MINE, encoding="utf-8")
    rows = [{"prompt": "How do I make tea?", "category": "tea"}, {"prompt": "And coffee?"}]
    (tmp_path / "more.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    base = load_template("no-degeneration")
    mine = load_template(str(tmp_path / "mine.toml"))
    assert mine.max_tokens == 7
    assert mine.prompts == (*base.prompts, *(Prompt(**row) for row in rows))
    assert [check.label for check in mine.checks] == ["not_empty", "matches, tea"]
    assert mine.slices == base.slices
    (tmp_path / "on.toml").write_text('extends = "mine.toml"\ndescription = "d"', encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert load_template("on.toml").prompts == mine.prompts  # beside the file that names it


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("max_token = 3", "`max_token` = `3`: unknown key, the nearest valid one is `max_tokens` .line 2."),
        ('checks = [{ kind = "jsn" }]', "should be one of `expected`"),
        ('checks = [{ kind = "json", key = ["a"] }]', "unknown key, the nearest valid one is `.*keys`"),
        ('checks = [{ kind = "matches", pattern = "(" }]', "no regular expression"),
        ('checks = [{ kind = "json" }, { kind = "json" }]', "two checks are called `json`"),
        ('prompts = "none.jsonl"', "cannot read the prompts in"),
        ('prompts = [{ prompt = "" }]', "at least 1 character"),
        ('slices = ["colour"]', "slices"),
        ("x = ", "is not TOML"),
        ('extends = "x.toml"', "extends itself"),
        ('extends = "nothing"', "there is no template `nothing`"),
        ("add_prompts = 3", "`add_prompts` should be a list"),
        ("max_tokens = 0", "`max_tokens` = `0`"),
    ],
)
def test_faults_of_a_template_are_named(tmp_path, text, found):
    path = tmp_path / "x.toml"
    base = "" if text.startswith("extends") else 'extends = "format"\n'
    path.write_text(f"{base}{text}\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=found):
        load_template(str(path))


@pytest.mark.parametrize(
    ("check", "text", "options", "expected"),
    [
        ({"kind": "expected"}, "It is paris, of course.", {"expected": ("Paris",)}, 1),
        ({"kind": "expected"}, "Comparison", {"expected": ("Paris",)}, 0),  # whole words
        ({"kind": "expected"}, "H2O!", {"expected": ("water", "H2O")}, 1),
        ({"kind": "expected"}, "x", {}, None),
        ({"kind": "not_empty"}, " \n", {}, 0),
        ({"kind": "not_empty", "min_words": 2}, "Yes.", {}, 0),
        ({"kind": "no_loop"}, "so it is so it is so it is", {}, 0),
        ({"kind": "no_loop"}, "a b c d e a b c d e f g", {}, 1),
        ({"kind": "no_loop", "max_repetition": 0.1}, "a b c d e a b c d e f g", {}, 0),
        ({"kind": "ends"}, "x", {"ended": False}, 0),
        ({"kind": "json"}, '{"a": 1}', {}, 1),
        ({"kind": "json"}, 'Here:\n```json\n{"a": 1}\n```\nDone.', {}, 1),
        ({"kind": "json"}, '{"a": 1} and more', {}, 0),
        ({"kind": "json"}, "3", {}, 0),  # JSON, but nobody asks for a bare number
        ({"kind": "json"}, "[" * 100_000, {}, 0),
        ({"kind": "json", "keys": ["a"]}, '[{"a": 1}, {"b": 1}]', {}, 0),
        ({"kind": "json", "keys": ["a"]}, "[]", {}, 0),
        ({"kind": "list"}, "- one\n- two", {}, 1),
        ({"kind": "list", "style": "numbered"}, "- one\n- two", {}, 0),
        ({"kind": "list", "style": "numbered"}, "Steps:\n1. one\n 2) two", {}, 1),
        ({"kind": "list", "max_items": 1, "min_items": 1}, "- one\n- two", {}, 0),
        ({"kind": "matches", "pattern": "^Dear"}, "Dear Ann", {}, 1),
        ({"kind": "like_teacher"}, "the cat sat down", {"teacher_text": "the cat sat up"}, 0.75),
        ({"kind": "length_of_teacher"}, "one", {"teacher_text": "one two three"}, 1),
        ({"kind": "length_of_teacher"}, "one", {"teacher_text": "one two three four"}, 0),
    ],
)
def test_checks_find_what_they_say(check, text, options, expected):
    assert score(check, text, **options) == expected


def test_a_template_needs_prompts_and_checks():
    with pytest.raises(ValueError, match="checks"):
        Template(prompts=({"prompt": "x"},), checks=())
