"""Two runs judged by templates. What models say is made up where a verdict is looked at, and real in the last test."""

import json
import re
from pathlib import Path

import pytest

from ammd.errors import BudgetExceededError
from ammd.pipeline import template_compare
from ammd.pipeline.judged_run import pair_models, read_judged
from ammd.pipeline.regression import check_changes
from ammd.pipeline.template import Template
from ammd.pipeline.template_answers import answers_of
from ammd.pipeline.toml_text import write_toml
from ammd.runtime.gate import Verdict

PROMPTS = [
    {"prompt": f"Say {n}", "category": "odd" if n % 2 else "even", "language": "en"} for n in range(20)
]


@pytest.fixture
def judge(tmp_path, bench_document, build_run, monkeypatch):
    """Compare two runs whose models say what `first` and `second` give for a prompt's place (a stand-in for models)."""

    def judge(first, second, **template):
        runs = tmp_path / "runs"
        said = {}
        for run_id, say in (("aaaa", first), ("bbbb", second)):
            folder = build_run(runs, run_id, bench_document())
            said[str(folder / "student")] = say

        def answers(path, template, *, cache):
            say = said[str(path)]
            return [{"text": say(n), "ended": True} for n in range(len(template.prompts))]

        monkeypatch.setattr(template_compare, "answers_of", answers)
        old, new = (read_judged(runs / "mine" / name) for name in ("aaaa", "bbbb"))
        return template_compare.compare_by_templates(
            old,
            new,
            pair_models(old, new, models=("student", None)),
            templates={"t": Template.model_validate({"prompts": PROMPTS} | template)},
            cache=tmp_path / "cache",
            samples=2,
        )

    return judge


def verdicts(comparison):
    return {(change.metric, change.slice): change.verdict for change in comparison.changes}


def test_slices_are_judged_one_by_one(judge):
    found = judge(
        lambda n: "fine",
        lambda n: "" if n < 10 and n % 2 else "fine",
        checks=[{"kind": "not_empty", "max_worse": 0.3}],
        slices=["category", "language"],
    )
    assert verdicts(found) == {
        ("t: not_empty", None): Verdict.UNDECIDED,  # 5 of 20 lost: the limit lies in the interval
        ("t: not_empty", "category=even"): Verdict.FINE,
        ("t: not_empty", "category=odd"): Verdict.UNDECIDED,  # 5 of 10
        ("t: not_empty", "language=en"): Verdict.UNDECIDED,
    }


def test_a_slice_that_is_lost_is_a_regression_while_the_whole_is_undecided(judge):
    worse = judge(
        lambda n: "fine",
        lambda n: "" if n % 2 else "fine",
        checks=[{"kind": "not_empty", "max_worse": 0.3}],
        slices=["category"],
    )
    assert verdicts(worse)["t: not_empty", None] is Verdict.UNDECIDED
    assert verdicts(worse)["t: not_empty", "category=odd"] is Verdict.REGRESSION
    with pytest.raises(
        BudgetExceededError, match="`t: not_empty` on `category=odd` is -1 from the baseline's"
    ):
        check_changes(change for change in worse.changes if change.slice == "category=odd")


def test_a_floor_holds_whatever_the_baseline(judge):
    found = judge(lambda n: "", lambda n: "", checks=[{"kind": "not_empty", "at_least": 0.9}])
    assert verdicts(found) == {
        ("t: not_empty, floor", None): Verdict.REGRESSION,
        ("t: not_empty", None): Verdict.FINE,
    }
    floor = found.changes[0]
    assert (floor.first, floor.second, floor.change) == (pytest.approx(0.9), 0, pytest.approx(-0.9))


def test_checks_of_a_category_look_at_its_prompts_only(judge):
    found = judge(
        lambda n: "- a\n- b",
        lambda n: "- a\n- b" if n % 2 else "a, b",
        checks=[{"kind": "list", "category": "odd"}],
    )
    (change,) = found.changes
    assert (change.metric, change.prompts, change.verdict) == ("t: list, odd", 10, Verdict.FINE)
    assert found.wins == [{"model": "student", "by": "list, odd", "wins": 0, "ties": 10, "losses": 0}]


def test_prompts_that_lost_most_are_shown_with_what_they_lost(judge):
    found = judge(
        lambda n: "tea and more",
        lambda n: "" if n == 3 else "coffee and more" if n == 4 else "tea and more",
        checks=[{"kind": "not_empty"}, {"kind": "matches", "pattern": "tea"}],
    )
    assert [(sample["prompt"], sample["lost"]) for sample in found.samples] == [
        ("Say 3", ["not_empty", "matches"]),
        ("Say 4", ["matches"]),
    ]
    assert found.as_json()["templates"] == ["t"]


def test_answers_are_kept_by_what_decides_them(tiny_checkpoint, build_checkpoint, tmp_path, monkeypatch):
    """A real checkpoint answers once; another one, or other prompts, ask anew; a damaged file is no answer."""
    from ammd.pipeline import template_answers

    asked = []

    def call(target, request):
        asked.append(request["path"])
        return real(target, request)

    real = template_answers.call
    monkeypatch.setattr(template_answers, "call", call)
    other = build_checkpoint(tmp_path / "other", seed=3, initializer_range=0.2)
    template = Template.model_validate(
        {"prompts": [{"prompt": "the thing"}, {"prompt": "an", "system": "in"}], "checks": [{"kind": "ends"}]}
        | {"max_tokens": 5}
    )
    cache = tmp_path / "cache"
    first = answers_of(tiny_checkpoint, template, cache=cache)
    assert [len(one["ids"]) for one in first] == [5, 5]
    assert answers_of(tiny_checkpoint, template, cache=cache) == first
    assert asked == [str(tiny_checkpoint)]
    assert answers_of(other, template, cache=cache) != first
    longer = template.model_copy(update={"max_tokens": 6})
    assert len(answers_of(tiny_checkpoint, longer, cache=cache)[0]["ids"]) == 6
    assert len(asked) == 3
    for kept in cache.iterdir():
        kept.write_text('{"answers": [{}]}', encoding="utf-8")
    assert answers_of(tiny_checkpoint, template, cache=cache) == first
    assert len(asked) == 4


def test_a_template_stops_a_build(
    tiny_checkpoint, build_checkpoint, tmp_path, ammd, bench_document, build_run
):
    """Real models through the command line: one against another, by a template in four lines."""
    runs = tmp_path / "runs"
    other = build_checkpoint(tmp_path / "other", seed=3, initializer_range=0.2)
    for run_id, path in (("aaaa", tiny_checkpoint), ("bbbb", other)):
        folder = build_run(runs, run_id, bench_document())
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        summary["models"][0]["path"] = str(path)
        (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    rows = [{"prompt": f"the thing {n}"} for n in range(6)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    asked = Template.model_validate({"max_tokens": 12, "prompts": rows, "checks": [{"kind": "ends"}]})
    first = answers_of(tiny_checkpoint, asked, cache=runs / ".answers")
    pattern = f"^(?:{'|'.join(sorted({re.escape(one['text']) for one in first}))})$"
    path = tmp_path / "mine.toml"
    path.write_text(
        f'max_tokens = 12\nprompts = "prompts.jsonl"\n[[checks]]\nkind = "matches"\n{write_toml({"pattern": pattern})}',
        encoding="utf-8",
    )
    arguments = ("compare", "aaaa:student", "bbbb", "--template", path, "--runs-dir", runs)
    code, out, err = ammd(*arguments, "--gate", "--json")
    assert code == 7, err
    document = json.loads(out)
    assert document["templates"] == [str(path)]
    (change,) = document["changes"]
    assert (change["first"], change["second"], change["verdict"]) == (1, 0, "regression")
    assert f"`student`: `{path}: matches` is -1 from the baseline's" in err
    assert ammd(*arguments)[0] == 0
    code, _, err = ammd("compare", "aaaa:student", "bbbb", "--template", "none", "--runs-dir", runs)
    assert code == 2
    assert "one of format, knowledge, no-degeneration, slices, style" in err
    assert Path(runs, ".answers").is_dir()
