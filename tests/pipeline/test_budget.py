"""Budgets: what keeps its limits, what does not and by how much, and what that costs a script."""

import json

import pytest

from ammd.errors import ArtifactError, BudgetExceededError, RecipeError
from ammd.pipeline.budget import check_budget, judge, missed_cells
from ammd.pipeline.budget_settings import BudgetSettings
from ammd.pipeline.recipe import load_recipe
from ammd.pipeline.run import run_recipe

MEASURED = {"decode_tokens_per_s": 100.0, "ttft_s": 0.05, "peak_rss_bytes": 200 << 20, "validity": "good"}


def _summary(**bench):
    quality = {"kl_to_teacher_nats": 0.5, "rouge_l": 0.3, "task_score_kept": 0.5, "prompts": 12}
    row = {"name": "gguf-q8_0", "bytes": 100_000_000, "quality": quality, "bench": MEASURED | bench}
    return {"artifacts": [row], "models": []}


def _judge(summary, tmp_path, **limits):
    return judge(BudgetSettings(**limits), summary, heldout="h", runs_dir=tmp_path)


@pytest.mark.parametrize(
    ("limits", "met", "over_by", "unit"),
    [
        ({"size": "100 MB"}, True, None, "bytes"),
        ({"size": "99 MB"}, False, 1_000_000, "bytes"),
        ({"peak_rss": "200 MiB"}, True, None, "bytes"),
        ({"peak_rss": "199 MiB"}, False, 1 << 20, "bytes"),
        ({"ttft_s": 0.05}, True, None, "s"),
        ({"ttft_s": 0.04}, False, 0.01, "s"),
        ({"decode_tokens_per_s": 100}, True, None, "tokens/s"),
        ({"decode_tokens_per_s": 101.5}, False, 1.5, "tokens/s"),
        ({"kl_to_teacher_nats": 0.5}, True, None, "nats"),
        ({"kl_to_teacher_nats": 0.4}, False, 0.1, "nats"),
        ({"kept": {"rouge_l": 0.3}}, True, None, "share"),
        ({"kept": {"rouge_l": 0.5}}, False, 0.2, "share"),
        ({"kept": {"rouge_l_reference": 0.5}}, True, None, "share"),
        ({"kept": {"rouge_l_reference": 0.6}}, False, 0.1, "share"),
    ],
)
def test_a_limit_is_kept_up_to_its_own_value(tmp_path, limits, met, over_by, unit):
    verdict = _judge(_summary(), tmp_path, **limits)
    (row,) = verdict["rows"]
    assert (verdict["met"], row["met"], row["unit"]) == (met, met, unit)
    assert row["over_by"] == (None if over_by is None else pytest.approx(over_by))
    if met:
        check_budget(verdict)
    else:
        with pytest.raises(BudgetExceededError, match=r"`gguf-q8_0`: .*at (least|most)"):
            check_budget(verdict)


def test_limits_of_a_file_go_before_those_of_all(tmp_path):
    summary = _summary()
    summary["artifacts"].append(summary["artifacts"][0] | {"name": "gguf-f16", "bytes": 300_000_000})
    verdict = _judge(summary, tmp_path, size="150 MB", ttft_s=0.1, files={"gguf-f16": {"size": "300 MB"}})
    limits = {(row["artifact"], row["metric"]): (row["limit"], row["met"]) for row in verdict["rows"]}
    assert limits == {
        ("gguf-q8_0", "bytes"): (150_000_000, True),
        ("gguf-q8_0", "ttft_s"): (0.1, True),
        ("gguf-f16", "bytes"): (300_000_000, True),
        ("gguf-f16", "ttft_s"): (0.1, True),
    }


def test_an_invalid_measurement_keeps_no_limit_and_a_noisy_one_says_so(tmp_path):
    reasons = {"validity_reasons": ["40 % of all cores' time went to other processes"]}
    invalid, noisy = (
        _judge(_summary(validity=word, **reasons), tmp_path, decode_tokens_per_s=50)["rows"][0]
        for word in ("invalid", "noisy")
    )
    assert (invalid["met"], invalid["value"], invalid["over_by"]) == (False, 100.0, None)
    assert invalid["why"].startswith("the measurement is invalid, 40 %")
    assert (noisy["met"], noisy["why"][:24]) == (True, "the measurement is noisy")


def test_what_failed_or_was_never_measured_keeps_no_limit(tmp_path):
    summary = _summary()
    summary["artifacts"][0]["bench"] = {"failure": {"ended": "killed by SIGKILL"}, "validity": "invalid"}
    row = _judge(summary, tmp_path, ttft_s=9)["rows"][0]
    assert (row["met"], row["value"], row["why"]) == (
        False,
        None,
        "it could not be measured, killed by SIGKILL",
    )
    summary["artifacts"][0] |= {"bench": None, "quality": None}
    rows = _judge(summary, tmp_path, ttft_s=9, kl_to_teacher_nats=9, kept={"rouge_l": 0.1})["rows"]
    assert [(row["met"], row["why"]) for row in rows] == [(False, "it was not measured")] * 3


def test_the_median_decides_and_a_limit_within_its_interval_is_told(tmp_path):
    spread = {"decode_tokens_per_s_low": 97.0, "decode_tokens_per_s_high": 103.0}
    for limit, met, why in (
        (99, True, "the limit lies within the 95 % interval"),
        (101, False, "the limit lies within the 95 % interval"),
        (96, True, ""),
    ):
        row = _judge(_summary(**spread), tmp_path, decode_tokens_per_s=limit)["rows"][0]
        assert (row["met"], row["why"], row["low"], row["high"]) == (met, why, 97.0, 103.0)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("budget.siz='90 MB'", r"`budget\.siz` = .*nearest valid one is `budget\.size`"),
        ("budget.size='90'", r"`budget\.size` = .*a number with MB, MiB, GB or GiB"),
        ("budget.ttft_s=0", r"`budget\.ttft_s`"),
        ("budget.kept.rouge=0.5", r"`budget\.kept\.rouge` = .*nearest valid one is `budget\.kept\.rouge_l`"),
        ("budget={}", r"`budget` = .*names no limit"),
        ("budget.baseline='x'", r"`budget` = .*`kept`, which names no score"),
        (
            "budget.files.gguf-q8_1.size='90 MB'",
            r"`budget\.files\.gguf-q8_1` limits a file that .* the nearest is `gguf-q8_0`",
        ),
        (
            "budget.files.gguf-q8_0.siz='90 MB'",
            r"nearest valid one is `budget\.files\.gguf-q8_0\.size`",
        ),
    ],
)
def test_wrong_budgets_are_refused_with_the_nearest_key(recipe_path, override, message):
    overrides = [override, "budget.ttft_s=9"] if ".files." in override else [override]
    with pytest.raises(RecipeError, match=message):
        load_recipe(recipe_path, overrides=overrides)


@pytest.fixture
def run(tmp_path, recipe_path, stand_in):
    def run(*overrides, until="report"):
        recipe = load_recipe(recipe_path, overrides=overrides)
        return run_recipe(recipe, runs_dir=tmp_path / "runs", stages=stand_in.stages, until=until)

    return run


def test_a_changed_budget_judges_the_same_run_at_once(run, stand_in, tmp_path):
    first = run()
    assert first["budget"] is None
    stand_in.ran()
    second = run("budget.decode_tokens_per_s=200")
    assert stand_in.ran() == []
    assert (second["run"], second["budget"]["met"]) == (first["run"], False)
    stored = tmp_path / "runs" / second["run"] / "summary.json"
    assert json.loads(stored.read_text(encoding="utf-8"))["budget"] == second["budget"]
    assert run("budget.decode_tokens_per_s=90")["budget"]["met"] is True
    assert json.loads(stored.read_text(encoding="utf-8"))["budget"]["met"] is True


def test_nothing_is_judged_before_there_are_files(run):
    assert run("budget.ttft_s=1", until="distill")["budget"] == {"met": None, "rows": []}


def test_a_missing_baseline_is_reported_before_any_work(run, stand_in):
    with pytest.raises(ArtifactError, match="there is no run `old`"):
        run("budget.baseline='old'", "budget.kept.rouge_l=0.9")
    assert stand_in.ran() == []


def test_scores_are_held_against_the_file_of_the_same_name_in_the_baseline(run):
    old = run("export.schemes=['gguf-q8_0']")
    wanted = (f"budget.baseline='{old['run']}'", "budget.kept.rouge_l=0.9")
    rows = {row["artifact"]: row for row in run(*wanted)["budget"]["rows"]}
    assert (rows["gguf-q8_0"]["met"], rows["gguf-q8_0"]["value"]) == (True, 1.0)
    assert rows["gguf-f16"]["met"] is False
    assert rows["gguf-f16"]["why"] == f"the baseline {old['run']} has no `gguf-f16`"


def test_other_numbers_of_prompts_are_told(run, tmp_path):
    old = run()
    path = tmp_path / "runs" / old["run"] / "summary.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    for row in document["artifacts"]:
        row["quality"] |= {"prompts": 12, "rouge_l": 0.8}
    path.write_text(json.dumps(document), encoding="utf-8")
    wanted = (f"budget.baseline='{old['run']}'", "budget.kept.rouge_l=0.6", "bench.repetitions=2")
    row = run(*wanted)["budget"]["rows"][0]
    assert (row["value"], row["met"], row["over_by"]) == (0.5, False, pytest.approx(0.1))
    assert row["why"] == f"on None prompts, the baseline {old['run']} on 12"


def test_answers_to_other_prompts_are_not_compared(run, tmp_path):
    old = run()
    manifest = tmp_path / "runs" / old["run"] / "evaluate/manifest.json"
    document = json.loads(manifest.read_text(encoding="utf-8"))
    document["inputs"]["heldout"] = "0" * 64
    manifest.write_text(json.dumps(document), encoding="utf-8")
    verdict = run("seed=8", f"budget.baseline='{old['run']}'", "budget.kept.rouge_l=0.1")["budget"]
    assert {row["why"] for row in verdict["rows"]} == {f"the baseline {old['run']} answered other prompts"}
    assert verdict["met"] is False


def test_ammd_run_ends_with_7_after_everything_is_written(stand_in, recipe_path, tmp_path):
    wanted = ("--set", "budget.decode_tokens_per_s=120", "--set", "budget.files.gguf-f16.ttft_s=0.2")
    process = stand_in.start(recipe_path, tmp_path / "runs", "--json", *wanted)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 7, err
    summary = json.loads(out)
    assert [(row["artifact"], row["metric"], row["met"]) for row in summary["budget"]["rows"]] == [
        ("gguf-f16", "decode_tokens_per_s", False),
        ("gguf-f16", "ttft_s", True),
        ("gguf-q8_0", "decode_tokens_per_s", False),
    ]
    for name in ("report.html", "summary.json", "MODEL_CARD.md"):
        assert (tmp_path / "runs" / summary["run"] / name).is_file()
    assert "error: `gguf-f16`: decode is 100 tok/s, at least 120 tok/s is allowed (and 1 more)" in err

    process = stand_in.start(recipe_path, tmp_path / "runs", *wanted)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 7
    assert "budget: missed" in out
    line = next(line for line in out[out.index("budget:") :].splitlines() if "gguf-q8_0" in line)
    assert line.split() == ["gguf-q8_0", "decode", "120", "tok/s", "100", "tok/s", "missed", "20", "tok/s"]
    assert next(line for line in out.splitlines() if "gguf-f16" in line).count("100 ✗") == 1


def test_cells_of_the_table_are_named_by_their_column():
    rows = [
        {"artifact": "a", "metric": "rouge_l_kept", "met": False},
        {"artifact": "a", "metric": "bytes", "met": True},
    ]
    assert missed_cells({"met": False, "rows": rows}) == {("a", "rouge_l")}
    assert missed_cells(None) == set()
