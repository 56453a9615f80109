"""The report of several runs, and the parts that it shares with that of one."""

import datetime
import json
import random
import re

import pytest

from ammd.pipeline.answer_diff import beside_teacher
from ammd.pipeline.columns import used_columns
from ammd.pipeline.definitions import markup_of, read_definitions
from ammd.pipeline.runs_report import ReportedRun, _settings, _spans, render_runs
from ammd.pipeline.tradeoff import build_tradeoff
from ammd.pipeline.verdict import Judgement, judge

LARGEST_PAGE = 10_000_000  # bytes, of 50 runs


@pytest.fixture
def reported(report_case):
    """A finished run by number, as the page of several takes it."""

    def reported(number):
        case = report_case(number)
        made = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC) + datetime.timedelta(hours=7 * number)
        return ReportedRun(
            name=case["summary"]["run"],
            link=f"quickstart/{number}/report.html",
            made=made,
            summary=case["summary"],
            curves=case["curves"],
            answers=case["answers"],
        )

    return reported


def budget(*met):
    rows = [
        {
            "artifact": "gguf-f16",
            "metric": "ttft_s",
            "unit": "s",
            "limit": 0.1,
            "value": 0.2,
            "met": one,
            "over_by": 0.1,
        }
        for one in met
    ]
    return {"met": all(one is True for one in met), "rows": rows}


def test_page_of_fifty_runs_has_them_all_and_is_small(reported):
    runs = [reported(number) for number in range(50)]
    page = render_runs(runs)
    assert len(page.encode()) < LARGEST_PAGE
    for run in runs:
        assert f'<a href="{run.link}">{run.name}</a>' in page
    assert len(re.findall(r'<g class="point[ "]', page)) == 400
    assert len(re.findall(r'<th scope="row"><span class="key"', page)) == 400


def test_verdict_counts_runs_that_meet_their_budget(reported):
    runs = [reported(number) for number in range(3)]
    runs[0].summary["budget"] = budget(True)
    runs[2].summary["budget"] = budget(True, False)
    page = render_runs(runs)
    assert "1 of 2 runs with a budget meet it" in page
    for text in ("The budget is met", "No budget was set", "1 of 2 limits of the budget is missed"):
        assert text in page
    assert "gguf-f16: TTFT over by 100 ms" in page


def test_runs_page_is_written_from_folders_and_does_not_replace_other_files(
    ammd, recipe_path, tmp_path, stand_in
):
    runs = tmp_path / "runs"
    for seed in (1, 2):
        process = stand_in.start(recipe_path, runs, "--set", f"seed={seed}")
        assert process.wait(timeout=120) == 0
        process.communicate()
    folders = sorted((runs / "tiny").iterdir())
    code, out, err = ammd("report", *folders, "--runs-dir", runs, "--json")
    document = json.loads(out)
    assert (code, document["schema"], len(document["runs"])) == (0, "ammd.report/1", 2)
    assert err.strip() == document["path"] == str(runs / "report.html")
    assert {run["budget_met"] for run in document["runs"]} == {None}
    page = (runs / "report.html").read_text(encoding="utf-8")
    for folder in folders:
        assert f'href="tiny/{folder.name}/report.html"' in page
    assert "1: run 1; 2: run 2" in page or "2: run 1; 1: run 2" in page  # the seed
    assert ammd("report", *folders, "--runs-dir", runs)[0] == 0  # its own page is written anew

    other = tmp_path / "precious.html"
    other.write_text("<p>mine</p>", encoding="utf-8")
    code, _, err = ammd("report", *folders, "--out", other)
    assert (code, err.splitlines()[0]) == (3, f"error: `{other}` is there already and is no report")
    assert other.read_text(encoding="utf-8") == "<p>mine</p>"
    assert ammd("report", folders[0], "--out", other)[0] == 2

    (folders[0] / "summary.json").unlink()
    code, _, err = ammd("report", *folders, "--runs-dir", runs)
    assert (code, "is not finished" in err) == (3, True)


def test_settings_that_differ_name_their_runs(reported):
    runs = [reported(number) for number in range(5)]
    for number, run in enumerate(runs):
        run.summary["recipe"] = {"seed": 7, "distill": {"objective": ["ammd", "gkd"][number in (1, 2)]}}
    (row,) = _settings(runs).rows
    assert row == ("distill.objective", "ammd: run 1, 4 to 5; gkd: run 2 to 3")
    assert _settings(runs[:1]) is None
    assert _spans([1, 2, 3, 7]) == "1 to 3, 7"


def test_words_that_differ_are_marked_and_the_text_stays_whole():
    answers = {
        "teacher": "The sky is blue,\n and wide.",
        "student": " The sky looks blue,\n and very wide. ",
        "none": "",
    }
    teacher, student, none = beside_teacher(answers)
    assert (teacher.alike, [piece.differs for piece in teacher.pieces]) == (None, [False])
    assert [piece.text for piece in student.pieces if piece.differs] == ["looks", "very"]
    assert student.alike == pytest.approx(2 * 5 / (6 + 7))  # The, sky, blue, and, wide
    assert (none.pieces, none.alike) == ((), 0)
    for answer in (teacher, student):
        assert "".join(piece.text for piece in answer.pieces) == answers[answer.name]
    assert beside_teacher({"student": "x"})[0].alike is None  # nothing to stand beside


@pytest.mark.parametrize(
    ("found", "judgement", "text"),
    [
        (None, Judgement.OPEN, "No budget was set"),
        (budget(True), Judgement.GOOD, "The budget is met"),
        (budget(True, True), Judgement.GOOD, "All 2 limits of the budget are met"),
        (budget(False), Judgement.BAD, "The budget is missed"),
        (budget(False, True, False), Judgement.BAD, "2 of 3 limits of the budget are missed"),
        ({"met": None, "rows": []}, Judgement.OPEN, "No budget was set"),
        (budget(), Judgement.OPEN, "The budget limits no file"),
    ],
)
def test_verdict_on_a_budget(report_case, found, judgement, text):
    headline = judge(report_case()["summary"] | {"budget": found}).headline
    assert (headline.judgement, headline.text) == (judgement, text)


def test_verdict_tells_proofs_and_the_best_files(report_case):
    summary = report_case()["summary"]
    texts = [statement.text for statement in judge(summary).statements]
    assert texts[0] == "All 4 files are proven to behave as the student does"
    assert texts[1] == "Measurements of speed: 6 noisy, 6 good"
    assert set(texts[2:]) == {
        "gguf-f16: closest to the teacher (0.554 nats)",
        "gguf-q4_k_m: smallest (87 MiB), least memory (158 MiB)",
        "onnx-int4: fastest (144 tok/s)",
    }
    summary["artifacts"][0]["parity"]["faults"] = ["x"]
    assert judge(summary).statements[0].judgement is Judgement.BAD
    summary["artifacts"][0]["parity"] = None
    assert judge(summary).statements[0].judgement is Judgement.OPEN


def test_places_keep_the_order_of_values_and_ticks_stand_at_their_numbers():
    chance = random.Random(0)
    sizes = [int(10 ** chance.uniform(6, 10)) for _ in range(40)]
    rows = [{"name": str(size), "bytes": size, "quality": {"rouge_l": size % 97 / 97}} for size in sizes]
    trade = build_tradeoff(rows, labels=[""] * 40, series=[0] * 40)
    for axis in trade.axes:
        pairs = sorted(zip(axis.values, axis.places, strict=True))
        assert [place for _, place in pairs] == sorted(place for _, place in pairs)
        assert 0 <= pairs[0][1] <= pairs[-1][1] <= 1
    size, rouge = trade.axes
    # A tick stands between the values on either side of its number.
    for axis, unit in ((size, 2**20), (rouge, 0.01)):
        assert len(axis.ticks) >= 3
        for place, label in axis.ticks:
            value = float(label.replace(",", "")) * unit
            below = [at for found, at in zip(axis.values, axis.places, strict=True) if found <= value]
            assert max(below, default=0) <= place + 1e-3  # places are rounded
    steps = [after[0] - before[0] for before, after in zip(size.ticks, size.ticks[3:], strict=False)]
    assert max(steps) - min(steps) < 1e-3  # logarithmic: ten times is always as far


def test_what_rounding_leaves_of_a_zero_does_not_press_the_rest_together():
    kl = [2e-8, 0.55, 0.65, 1.26]
    rows = [{"name": str(nats), "bytes": 5, "quality": {"kl_to_teacher_nats": nats}} for nats in kl]
    trade = build_tradeoff(rows, labels=[""] * 4, series=[0] * 4)
    (places,) = (axis.places for axis in trade.axes if axis.key == "kl_to_teacher_nats")
    assert places[3] - places[2] > 0.3


def test_all_alike_is_in_the_middle():
    rows = [{"name": "a", "bytes": 5, "quality": {"rouge_l": 0.5}}] * 2
    trade = build_tradeoff(rows, labels=["1", "2"], series=[0, 1])
    assert [axis.places for axis in trade.axes] == [(0.5, 0.5)] * 2
    assert trade.front == (0, 1)  # neither is better


def test_definitions_are_those_of_the_page_and_markdown_is_escaped():
    assert all(not section.parts for section in read_definitions(()).sections)
    definitions = read_definitions({"quality"})
    assert definitions.link("quality", "rouge_l")
    assert definitions.link("bench", "ttft_s") == ""  # not on this page
    assert read_definitions({"bench"}).link("bench", "token_p99_s")
    assert read_definitions({"bench"}).link("bench", "decode_tokens_per_s_low")  # `*_low`
    assert markup_of("KL(a \\|\\| b), `x<y`, [page](x.md) & <b>") == (
        "KL(a || b), <code>x&lt;y</code>, page &amp; &lt;b&gt;"
    )


def test_every_column_of_the_plot_is_an_axis(report_case):
    summary = report_case()["summary"]
    rows = [*summary["models"], *summary["artifacts"]]
    trade = build_tradeoff(rows, labels=[""] * 8, series=[0] * 8)
    assert [axis.key for axis in trade.axes] == [column.key for column in used_columns(rows)]
    assert (trade.across, trade.up, trade.area) == ("bytes", "kl_to_teacher_nats", "decode_tokens_per_s")
