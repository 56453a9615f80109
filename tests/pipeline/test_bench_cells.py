"""What is told of each measurement: on screen, by exit code, in rows and in the report."""

from __future__ import annotations

import copy

import pytest

from ammd.errors import EngineError, NotComparableError
from ammd.pipeline.bench_cells import cells_of, cells_of_run, check_measured
from ammd.pipeline.recipe import load_recipe
from ammd.pipeline.report import render_report
from ammd.pipeline.summary import build_summary
from ammd.runtime.bench_document import parse_document
from ammd.runtime.gate import check_plan, compare
from ammd.runtime.settings import BenchSettings

FAILED = {
    "engine": "llama.cpp",
    "threads": 2,
    "failure": {"ended": "it was killed by SIGKILL", "message": "…", "hint": "close other programs"},
    "validity": "invalid",
    "validity_reasons": ["it was killed by SIGKILL"],
    "processes": 0,
    "replaced": [],
}


@pytest.fixture
def marked(bench_document):
    """Return a document whose row has a verdict, or failed."""

    def marked(validity, reasons=(), *, seed=0):
        document = bench_document(seed=seed)
        model = document["bench"]["gguf-q8_0"]
        facts = {"validity": validity, "validity_reasons": list(reasons), "warmup_passes": [4, 4, 6]}
        row = FAILED if validity == "failed" else model["rows"][0] | facts | {"replaced": [{}]}
        document["bench"]["gguf-q8_0"] = {**row, "rows": [row], "file": model["file"]}
        return document

    return marked


def test_cell_tells_how_much_was_measured_and_how_good_it_is(marked):
    (cell,) = cells_of(marked("noisy", ["7 % of it", "and more"])["bench"])
    assert (cell.model, cell.threads, cell.processes, cell.replaced) == ("gguf-q8_0", 2, 3, 1)
    assert (cell.passes, cell.warmup_passes) == (15, 14)
    assert (cell.state, cell.why) == ("noisy", "7 % of it; and more")
    check_measured([cell])


def test_documents_from_before_the_rule_have_no_cells(bench_document):
    assert cells_of(bench_document()["bench"]) == []
    assert cells_of({"a": None, "b": {"decode_tokens_per_s": 1.0}}) == []


def test_failed_cells_are_one_error_that_names_the_first(marked):
    bench = marked("failed")["bench"] | {"another": marked("failed")["bench"]["gguf-q8_0"]}
    with pytest.raises(EngineError, match=r"`gguf-q8_0, 2 threads` could not .* SIGKILL \(and 1 more\)") as e:
        check_measured(cells_of(bench))
    assert (e.value.exit_code, e.value.hint) == (6, "close other programs")
    assert e.value.facts["failed"] == ["gguf-q8_0, 2", "another, 2"]


def compared(old, new):
    import numpy as np

    sides = [parse_document(document, label="x") for document in (old, new)]
    return compare(*sides, max_regression=0.05, generator=np.random.default_rng(0))


@pytest.mark.parametrize("side", ["the baseline", "this benchmark"])
@pytest.mark.parametrize(
    ("validity", "message"),
    [
        ("invalid", "`x-q8_0.gguf, 2 threads` is invalid in {side}: 30 % of it"),
        ("failed", "`x-q8_0.gguf, 2 threads` failed in {side}: it was killed by SIGKILL"),
    ],
)
def test_gate_refuses_what_failed_or_is_invalid_on_either_side(
    marked, bench_document, side, validity, message
):
    pair = [marked(validity, ["30 % of it"]), bench_document()]
    with pytest.raises(NotComparableError, match=message.format(side=side)):
        compared(*(pair if side == "the baseline" else reversed(pair)))


def test_gate_refuses_a_failed_baseline_before_any_work(marked):
    document = marked("good")
    document["bench"]["other"] = copy.deepcopy(marked("failed")["bench"]["gguf-q8_0"])
    baseline = parse_document(document, label="x")
    with pytest.raises(NotComparableError, match="failed in the baseline"):
        check_plan(baseline, BenchSettings(), machine={"cpu": "a CPU", "cores": 2})


def test_gate_says_what_is_noisy_and_judges_it(marked):
    gate = compared(marked("good"), marked("noisy", ["7 % of it"], seed=1))
    assert gate.as_json()["noisy"] == ["`x-q8_0.gguf, 2 threads` is noisy in this benchmark: 7 % of it"]
    assert len(gate.findings) == 4


def test_report_shows_each_verdict_escaped(marked, tmp_path, recipe_path):
    summary = build_summary(load_recipe(recipe_path), tmp_path, {})
    record = marked("invalid", ["30 % <of> it"])["bench"]["gguf-q8_0"]
    row = {"name": "gguf-q8_0", "bytes": 1, "path": "x", "sha256": "0", "fallbacks": []}
    row |= {"quality": None, "parity": None, "bench": record}
    summary |= {"artifacts": [row], "models": []}
    page = render_report(summary, curves=[], answers=[], recipe_text="")
    line = next(line for line in page.splitlines() if "<td>invalid</td>" in line)
    assert line.strip().startswith(
        '<tr><th scope="row">gguf-q8_0</th><td>2</td><td>3</td><td>1</td><td>15</td><td>14</td>'
    )
    assert "30 % &lt;of&gt; it" in line
    assert "How good the speeds are" not in render_report(
        summary | {"artifacts": []}, curves=[], answers=[], recipe_text=""
    )
    assert len(cells_of_run(summary)) == 1
