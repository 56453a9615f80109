"""The report page: whole, self-contained, safe to open, readable where numbers are missing."""

import base64
import hashlib
import html
import re

import pytest

from ammd.pipeline.columns import COLUMNS, show, used_columns, value_of
from ammd.pipeline.definitions import read_definitions
from ammd.pipeline.file_notes import file_notes
from ammd.pipeline.plots import _phase_border, _running_seconds, draw_curves
from ammd.pipeline.recipe import load_recipe
from ammd.pipeline.report import render_report
from ammd.pipeline.run import run_recipe
from ammd.pipeline.run_plots import draw_costs, draw_memory
from ammd.pipeline.summary import build_summary
from ammd.pipeline.tradeoff import build_tradeoff
from ammd.runtime.profile_document import PROJECTED, UNDER_LIMITS


@pytest.fixture
def page(tmp_path, recipe_path, stand_in):
    """The report of a run of the stand-ins."""
    summary = run_recipe(load_recipe(recipe_path), runs_dir=tmp_path / "runs", stages=stand_in.stages)
    return (tmp_path / "runs" / summary["run"] / "report.html").read_text(encoding="utf-8")


def test_page_asks_nothing_of_the_network_and_runs_only_the_script_that_its_policy_names(page):
    without_names = re.sub(r'xmlns(:\w+)?="[^"]*"', "", page).replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?://|@import|src=|url\((?!#)", without_names)
    assert re.findall(r"<link [^>]*>", page) == ['<link rel="icon" href="data:,">']
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', page)[1])
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    (script,) = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy


def test_text_of_models_is_escaped(page):
    assert "What &lt;b&gt;is&lt;/b&gt; it?" in page
    assert "It is <mark>&lt;i&gt;gguf-q8_0&lt;/i&gt;.</mark>" in page
    assert "<i>" not in page


def test_page_shows_models_plots_proofs_answers_stages_machine_and_recipe(page):
    headings = (
        "No budget was set",
        "Models and files",
        "Training",
        "Proofs of the files",
        "Answers to held-out prompts",
    )
    for text in (*headings, "What it cost", "Machine and versions", "Recipe", "layers = 1", "kl nats"):
        assert text in page
    memory = page.count("Memory while the run was made</h3>")  # of a machine so slow that it was sampled
    assert page.count("<svg") - memory == 4  # trade, loss, distances, KL


def test_page_says_what_is_stored_otherwise_and_what_a_mixture_was_chosen_for(page):
    assert "2 tensors of rows of 576 weights stored as Q5_0 instead of Q4_K" in page
    assert "student-imatrix.gguf: 7 matrices on" in page
    choice = {
        "budget": {"size": "80 MB"},
        "tensors": {"Q4_K": 100, "Q6_K": 1},
        "expected_kl_nats": 0.0301,
        "measured_kl_nats": 0.0402,
    }
    (note,) = file_notes({"fallbacks": [], "choice": choice})
    assert note == (
        "chosen for size = 80 MB: 100 Q4_K, 1 Q6_K; KL 0.0402 nats a token on texts kept back (expected 0.0301)"
    )
    assert file_notes({}) == []


def test_page_of_a_trimmed_run_says_what_is_left(tmp_path, recipe_path):
    summary = build_summary(load_recipe(recipe_path), tmp_path, {})
    facts = {"tokens_before": 49152, "tokens": 13788, "parameters_saved": 20369664}
    shares = {"respelled_share": 0.105, "heldout_respelled_share": 0.0468}
    pages = [
        render_report({**summary, "vocabulary": found}, curves=[], answers=[], recipe_text="")
        for found in (None, facts | shares)
    ]
    assert "Vocabulary trimmed" not in pages[0]
    for text in ("from 49,152 to", "13,788 tokens", "20,369,664 parameters", "10.50 % of", "4.68 % of"):
        assert text in pages[1]


def test_page_says_what_a_tuned_teacher_learnt(tmp_path, recipe_path):
    summary = build_summary(load_recipe(recipe_path), tmp_path, {})
    facts = {
        "texts": 9600,
        "steps": 300,
        "heldout_texts": 32,
        "heldout_nats_before": 3.36,
        "heldout_nats": 1.8125,
    }
    blind = facts | {"heldout_texts": 0, "heldout_nats_before": None, "heldout_nats": None}
    pages = [
        " ".join(render_report({**summary, "tuning": found}, curves=[], answers=[], recipe_text="").split())
        for found in (None, facts, blind)
    ]
    assert "fine-tuned" not in pages[0]
    learnt = "fine-tuned first, on the 9,600 given responses for 300 steps"
    assert (
        f"{learnt}: cross-entropy on 32 held-out responses went from 3.360 to 1.812 nats a token." in pages[1]
    )
    assert f"{learnt}. Everything here" in pages[2]


@pytest.mark.parametrize(
    ("objective", "misfit", "words"),
    [
        ("ammd", "", "In training both distributions were matched"),
        ("sft", "", "In the warm start both distributions were matched"),
        ("sft", "too little", "Nothing was matched: the student learnt from the teacher's responses alone"),
    ],
)
def test_page_says_what_was_matched_where_tokenizers_differ(tmp_path, recipe_path, objective, misfit, words):
    summary = build_summary(load_recipe(recipe_path), tmp_path, {})
    summary["training"] = {"objective": objective}
    summary["match"] = {
        "teacher_tokens": 49152,
        "student_tokens": 32000,
        "shared_tokens": 21000,
        "aligned_share": 0.81,
        "teacher_aligned_share": 0.9,
        "shared_mass": 0.925,
        "beginning_mass": 0.07,
        "remainder_mass": 0.005,
        "misfit": misfit,
    }
    page = render_report(summary, curves=[], answers=[], recipe_text="")
    text = html.unescape(" ".join(re.sub("<[^>]*>", "", page).split()))
    assert words in text
    assert "49,152 and 32,000 tokens, of which they share 21,000" in text
    assert "81 % begin there; tokens that both have hold 92.5 % of the teacher's probability" in text


def test_page_keeps_what_is_projected_apart_from_what_is_measured(tmp_path, recipe_path):
    summary = build_summary(load_recipe(recipe_path), tmp_path, {})
    measured = {
        **dict.fromkeys(UNDER_LIMITS, 1),
        "file": "f",
        "memory_limit_by": "watched",
        "passes": False,
        "broken": "memory: 3 MiB over",
    }
    projected = {
        **dict.fromkeys(PROJECTED, 1.0),
        "file": "f",
        "projected_metric": "decode_tokens_per_s",
        "projected_tokens_per_s": 20.0,
        "projected_low": 12.4,
        "projected_high": 32.2,
        "projected_from": "published rates of 7 devices",
    }
    document = {"profile": {"name": "pixel-8"}, "under_limits": [measured], "projected": [projected]}
    without, page = (
        render_report({**summary, "profiles": found}, curves=[], answers=[], recipe_text="")
        for found in ([], [document])
    )
    assert "On phones that are not here" not in without
    first, second = page.split("<h3>")[1:3]
    assert first.startswith("pixel-8: measured on this machine") and "fails: memory: 3 MiB over" in first
    assert second.startswith("pixel-8: projected, not measured") and "12 to 32" in second
    assert "12 to 32" not in first


def test_ids_of_drawings_on_one_page_are_distinct(page):
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    for reference in re.findall(r'(?:href="|url\()#([^")]+)', page):
        assert reference in ids


def test_drawings_take_the_colour_of_the_page(page):
    assert "currentColor" in page
    assert "#010203" not in page
    assert "#ffffff" not in page.split("</style>", 1)[1]


def test_phases_share_one_clock():
    rows = [
        {"phase": "warm", "seconds": 10.0, "loss": 2.0},
        {"phase": "warm", "seconds": 20.0, "loss": 1.5},
        {"phase": "ammd", "seconds": 5.0, "loss": 1.0},
    ]
    (plot,) = draw_curves(rows)
    assert plot.title == "Loss"
    assert ">25<" in plot.svg.replace(" ", "")  # 20 s of warm start and 5 s of AMMD


def test_shares_of_the_warm_start_share_the_clock_and_the_second_phase_begins_after_them():
    rows = [
        {"phase": "warm 1", "seconds": 10.0, "loss": 2.0},
        {"phase": "warm 2", "seconds": 20.0, "loss": 1.5},
        {"phase": "ammd", "seconds": 5.0, "loss": 1.0},
    ]
    assert _phase_border(_running_seconds(rows)) == 35
    assert _phase_border(_running_seconds(rows[:2])) is None
    assert _phase_border(rows[2:]) is None


def test_nothing_measured_draws_nothing():
    assert draw_curves([]) == []
    assert draw_memory([]) is None
    assert draw_costs([]) == []
    row = {"name": "x", "bytes": 1, "quality": None, "bench": None}
    assert build_tradeoff([row], labels=["1"], series=[0]) is None


def test_missing_number_is_a_dash_and_its_column_goes_when_nobody_has_it():
    rows = [{"bytes": 2**20, "quality": {"rouge_l": 0.25}}, {"bytes": 2**21, "quality": None}]
    columns = used_columns(rows)
    assert [column.key for column in columns] == ["bytes", "rouge_l"]
    assert [[show(value_of(row, column), column) for column in columns] for row in rows] == [
        ["1", "25.0"],
        ["2", "–"],
    ]


def test_small_number_is_not_shown_as_nothing():
    kl = next(column for column in COLUMNS if column.key == "kl_nats")
    assert [show(value, kl) for value in (0.0, 2e-8, 1.2e-6, 2.64e-3)] == [
        "0.00000",
        "0.00000",
        "1e-06",
        "0.00264",
    ]


def test_loss_below_zero_stays_in_the_picture():
    def lowest_tick(losses):
        rows = [{"phase": "ammd", "seconds": float(at), "loss": loss} for at, loss in enumerate(losses)]
        ticks = re.findall(r">([−-]?\d+\.\d+)</text>", draw_curves(rows)[0].svg)
        return min(float(tick.replace("−", "-")) for tick in ticks)

    assert lowest_tick([1.0, 0.5]) == 0
    assert lowest_tick([1.0, -0.5]) < 0


def test_every_column_is_defined_in_the_documentation():
    definitions = read_definitions({"quality", "parity", "bench"})
    assert [column.key for column in COLUMNS if not definitions.link(column.section, column.key)] == []


def test_every_number_of_the_page_points_to_what_it_means(report_case):
    case = report_case()
    case["summary"]["costs"] = None
    page = render_report(**case)
    heads = re.findall(r'<th scope="(?:col|row)">(.*?)</th>', page)
    numbers = [head for head in heads if "<small>" in head and not re.search(r"#def-[0-9-]+", head)]
    assert numbers == []
    targets = set(re.findall(r'href="#([^"]+)"', page))
    assert targets <= set(re.findall(r'\sid="([^"]+)"', page))
