"""Two runs side by side, with scores that are made up so that every verdict is known."""

import json
import os

import pytest

from ammd.errors import RecipeError
from ammd.pipeline.compare import differing_settings
from ammd.pipeline.regression import DEFAULT_LIMITS, MERITS, Limit, judge_difference, read_limits
from ammd.runtime.gate import Verdict

PROMPTS = 12
TEXT = "The sky is blue because air scatters blue light"


@pytest.fixture
def runs(tmp_path):
    return tmp_path / "runs"


@pytest.fixture
def compare(ammd, runs):
    """Run `ammd compare`; return exit code, document where there is one, and standard error."""

    def compare(*arguments):
        code, out, err = ammd("compare", *arguments, "--runs-dir", runs, "--json")
        return code, json.loads(out) if out else None, err

    return compare


def changes_of(document, metric):
    return {row["model"]: row for row in document["changes"] if row["metric"] == metric}


def test_a_run_against_itself_has_changed_nothing(runs, compare, bench_document, build_run):
    build_run(runs, "aaaa", bench_document(), rouge=lambda n: n / PROMPTS)
    code, document, err = compare("aaaa", "aaaa", "--gate")
    assert (code, err) == (0, "")
    assert document["schema"] == "ammd.compare/1"
    for row in document["changes"]:
        assert row["change"] == (1 if row["is_ratio"] else 0)
        assert row["verdict"] in ("fine", None)
    assert {(row["wins"], row["ties"], row["losses"]) for row in document["wins"]} == {(0, PROMPTS, 0)}
    assert document["samples"] == document["settings"] == []


def test_what_is_worse_on_every_prompt_ends_with_7_and_says_by_how_much(
    runs, compare, bench_document, build_run
):
    build_run(runs, "aaaa", bench_document(), rouge=lambda n: 0.3 + n / 40, lr=1.0)
    build_run(runs, "bbbb", bench_document(), rouge=lambda n: 0.2 + n / 40, lr=2.0)
    code, document, err = compare("aaaa", "bbbb", "--gate")
    assert code == 7
    row = changes_of(document, "rouge_l")["student"]
    assert (row["change"], row["prompts"], row["verdict"]) == (pytest.approx(-0.1), PROMPTS, "regression")
    # Paired: every prompt lost the same, however much prompts differ.
    assert (row["low"], row["high"]) == (pytest.approx(-0.1), pytest.approx(-0.1))
    assert err.startswith(
        "error: `student`: `rouge_l` is -0.1 from the baseline's (0.4375 → 0.3375, 95 % interval"
    )
    assert "over 12 prompts); 0.03 worse is allowed (and 1 more)" in err
    win = next(win for win in document["wins"] if win["by"] == "rouge_l")
    assert (win["wins"], win["ties"], win["losses"]) == (0, 0, PROMPTS)
    assert document["settings"] == [{"key": "distill.lr", "first": 1.0, "second": 2.0}]
    assert compare("aaaa", "bbbb")[0] == 0  # without a gate it only says so
    assert compare("aaaa", "bbbb", "--gate", "--max-regression", "rouge_l=0.11")[0] == 0
    assert compare("aaaa", "bbbb", "--gate", "--max-regression", "rouge_l=25%")[0] == 0
    assert compare("bbbb", "aaaa", "--gate")[0] == 0  # better is no regression


def test_noise_is_undecided_and_fails_no_build(runs, compare, bench_document, build_run):
    build_run(runs, "aaaa", bench_document(), rouge=0.5)
    build_run(runs, "bbbb", bench_document(), rouge=lambda n: 0.9 if n % 2 else 0.0)
    code, document, _ = compare("aaaa", "bbbb", "--gate")
    row = changes_of(document, "rouge_l")["student"]
    assert (code, row["verdict"]) == (0, "undecided")
    assert row["low"] < row["change"] < row["high"]


def test_means_over_tokens_are_those_of_the_tables(runs, compare, bench_document, build_run):
    build_run(runs, "aaaa", bench_document(), nll=1.0)
    build_run(runs, "bbbb", bench_document(), nll=lambda n: 2.0 if n == PROMPTS - 1 else 1.0)
    row = changes_of(compare("aaaa", "bbbb")[1], "nll_under_teacher_nats")["student"]
    tokens = [10 + n for n in range(PROMPTS)]
    assert row["second"] == pytest.approx(1 + tokens[-1] / sum(tokens))
    assert row["verdict"] is None  # shown, not judged
    limited = compare("aaaa", "bbbb", "--max-regression", "nll_under_teacher_nats=1")[1]
    assert changes_of(limited, "nll_under_teacher_nats")["student"]["verdict"] == "fine"


def test_speed_is_judged_by_the_gate_of_the_benchmark(runs, compare, bench_document, build_run):
    build_run(runs, "aaaa", bench_document())
    build_run(runs, "bbbb", bench_document(slowdown=0.3))
    code, document, err = compare("aaaa", "bbbb", "--gate")
    row = changes_of(document, "decode_tokens_per_s")["gguf-q8_0"]
    assert (code, row["verdict"]) == (7, "regression")
    assert row["change"] == pytest.approx(0.7, rel=0.05)
    assert "`gguf-q8_0`: `decode_tokens_per_s` is 0.7" in err
    assert compare("aaaa", "bbbb", "--gate", "--quality-only")[0] == 0
    allowed = [
        f"--max-regression={name}=60%" for name in ("decode_tokens_per_s", "prefill_tokens_per_s", "ttft_s")
    ]
    assert compare("aaaa", "bbbb", "--gate", *allowed)[0] == 0


def test_a_gate_that_cannot_judge_speed_does_not_let_pass(runs, compare, bench_document, build_run):
    build_run(runs, "aaaa", bench_document())
    build_run(runs, "bbbb", bench_document(processes=1))
    code, document, err = compare("aaaa", "bbbb", "--gate")
    assert code == 6
    assert "rests on 1 of at least 3 processes" in document["speed_not_compared"]
    assert "--quality-only" in err
    assert compare("aaaa", "bbbb")[0] == 0


def test_larger_files_are_a_regression(runs, compare, bench_document, build_run):
    build_run(runs, "aaaa", bench_document(), size=1000)
    build_run(runs, "bbbb", bench_document(), size=1060)
    code, _, err = compare("aaaa", "bbbb", "--gate")
    assert code == 7
    assert "`bytes` is 1.060 of the baseline's (1000 → 1060); 5% worse is allowed" in err
    assert compare("aaaa", "bbbb", "--gate", "--max-regression", "bytes=10%")[0] == 0


@pytest.mark.parametrize(
    ("change", "found"), [({"prompt": "How {}?"}, "prompt 1 is `Why 0?` in `mine/aaaa` and `How 0?`")]
)
def test_other_prompts_cannot_be_compared(runs, compare, bench_document, change, found, build_run):
    build_run(runs, "aaaa", bench_document())
    build_run(runs, "bbbb", bench_document(), **change)
    code, document, err = compare("aaaa", "bbbb")
    assert (code, document) == (6, None)
    assert found in err


def test_fewer_prompts_are_compared_as_far_as_they_go(runs, compare, bench_document, build_run):
    build_run(runs, "aaaa", bench_document())
    build_run(runs, "bbbb", bench_document(), prompts=4, rouge=0.1)
    code, document, _ = compare("aaaa", "bbbb", "--gate")
    row = changes_of(document, "rouge_l")["student"]
    assert (code, row["prompts"], row["verdict"]) == (0, 4, "undecided")  # too few to judge


def test_one_model_against_another_of_the_same_run(runs, compare, bench_document, build_run):
    build_run(runs, "aaaa", bench_document())
    code, document, _ = compare("aaaa:student", "mine/aaaa:gguf-q8_0")
    assert code == 0
    assert {row["model"] for row in document["changes"]} == {"student → gguf-q8_0"}
    code, _, err = compare("aaaa:student", "aaaa:gguf-q4_0")
    assert code == 3
    assert "run `mine/aaaa` has no model `gguf-q4_0`" in err


def test_most_different_answers_come_first(runs, compare, bench_document, build_run):
    build_run(runs, "aaaa", bench_document(), answer=lambda n: TEXT)
    build_run(runs, "bbbb", bench_document(), answer=lambda n: TEXT if n else "no idea")
    document = compare("aaaa:student", "bbbb", "--samples", 5)[1]
    (sample,) = document["samples"]  # equal answers are left out
    assert (sample["first"], sample["second"], sample["likeness"]) == (TEXT, "no idea", 0)


def test_a_name_stands_for_a_run_and_the_newest_is_judged_against_it(
    runs, ammd, compare, bench_document, build_run
):
    first = build_run(runs, "aaaa", bench_document(), rouge=0.5)
    build_run(runs, "bbbb", bench_document(), rouge=0.5)
    third = build_run(runs, "cccc", bench_document(), rouge=0.1)
    os.utime(third / "summary.json", (2e9, 2e9))
    code, _, err = ammd("compare", "--set-baseline", "main", "aaaa", "--runs-dir", runs)
    assert code == 0
    assert err.strip() == str(runs / "refs" / "main")
    code, document, err = compare("--baseline", "main")
    assert (code, document["first"], document["second"]) == (7, "mine/aaaa", "mine/cccc")
    assert compare("--baseline", "main", "bbbb")[0] == 0
    listed = json.loads(ammd("runs", "--runs-dir", runs, "--json")[1])["runs"]
    assert len(listed) == 3  # the reference is no run
    for name, code in (("no/name", 2), ("../x", 2)):
        assert ammd("compare", "--set-baseline", name, "aaaa", "--runs-dir", runs)[0] == code
    first.rename(runs / "mine" / "gone")
    code, _, err = compare("--baseline", "main")
    assert code == 3
    assert "`main` stands for the run `mine/aaaa`, which is not there any more" in err


def test_runs_that_are_not_finished_or_were_judged_by_older_versions_are_named(
    runs, compare, bench_document, build_run
):
    first = build_run(runs, "aaaa", bench_document())
    (first / "summary.json").unlink()
    code, _, err = compare("aaaa", "aaaa")
    assert code == 3
    assert "is not finished" in err
    second = build_run(runs, "bbbb", bench_document())
    (second / "evaluate" / "scores.jsonl").write_text("", encoding="utf-8")
    code, _, err = compare("bbbb", "bbbb")
    assert code == 3
    assert "scores.jsonl` has 0 bytes" in err


@pytest.mark.parametrize(
    "arguments",
    [(), ("a",), ("a", "b", "--baseline", "c"), ("a", "b", "--set-baseline", "c"), ("--set-baseline", "c")],
)
def test_wrong_usage_exits_2(compare, arguments):
    code, document, err = compare(*arguments)
    assert (code, document) == (2, None)
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "text", ["rouge_l", "rouge_l=x", "rouge_l=-1", "rouge_l=nan", "nothing=1", "bytes=5", "=1"]
)
def test_wrong_limits_are_refused(text):
    with pytest.raises(RecipeError):
        read_limits([text])


def test_limits_are_in_the_numbers_unit_or_a_share():
    limits = read_limits(["rouge_l=2%", "kl_to_teacher_nats=0.5", "bytes=0.1"])
    assert limits["rouge_l"] == Limit(value=0.02, is_share=True)
    assert limits["kl_to_teacher_nats"] == Limit(value=0.5, is_share=False)
    assert limits["bytes"] == Limit(value=0.1, is_share=True)
    assert limits["repetition"] == DEFAULT_LIMITS["repetition"]


@pytest.mark.parametrize(
    ("metric", "low", "high", "verdict"),
    [
        ("rouge_l", -0.09, -0.04, Verdict.REGRESSION),
        ("rouge_l", -0.09, -0.02, Verdict.UNDECIDED),
        ("rouge_l", -0.02, 0.3, Verdict.FINE),
        ("kl_to_teacher_nats", 0.06, 0.1, Verdict.REGRESSION),
        ("kl_to_teacher_nats", -0.3, 0.04, Verdict.FINE),
        ("kl_to_teacher_nats", -0.3, 0.06, Verdict.UNDECIDED),
    ],
)
def test_a_regression_is_a_whole_interval_beyond_the_limit(metric, low, high, verdict):
    better, allowed = MERITS[metric], DEFAULT_LIMITS[metric].of(0.5)
    for prompts, expected in ((8, verdict), (4, Verdict.UNDECIDED)):
        found = judge_difference(
            low=low, high=high, allowed=allowed, prompts=prompts, higher_is_better=better
        )
        assert found is expected


def test_settings_that_only_one_side_has_differ():
    first = {"a": {"b": 1, "c": {}}, "d": [1]}
    second = {"a": {"b": 1, "c": {"e": 2}}, "d": [1, 2]}
    assert differing_settings(first, second) == [
        {"key": "d", "first": [1], "second": [1, 2]},
        {"key": "a.c.e", "first": None, "second": 2},
    ]


def test_tables_show_what_the_document_holds(runs, ammd, bench_document, build_run):
    build_run(runs, "aaaa", bench_document(), rouge=0.5, answer=lambda n: "[b]old[/b]")
    build_run(runs, "bbbb", bench_document(), rouge=0.2, seed=3)
    code, out, _ = ammd("compare", "aaaa", "bbbb", "--runs-dir", runs)
    assert code == 0
    for text in ("50.0 → 20.0", "regression", "[b]old[/b]", "seed", "losses", "×1.000"):
        assert text in out
