"""Benchmarks for the eye: tables that begin with what was to be expected, drawings, and proofs beside speeds."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest

from ammd.pipeline.bench_plots import draw_bench
from ammd.pipeline.bench_proofs import name_proofs, proofs_of
from ammd.pipeline.bench_tables import bench_blocks, notes_of
from ammd.pipeline.recipe import load_recipe
from ammd.pipeline.report import render_report
from ammd.pipeline.summary import build_summary

MORE = {
    "weight_bytes_per_token": 3 << 20,
    "kv_bytes_per_token": 2048,
    "bandwidth_bytes_per_s": 3e9,
    "decode_ceiling_tokens_per_s": 900.0,
    "decode_of_ceiling": 0.111,
    "rss_anon_bytes": 100 << 20,
    "rss_file_bytes": 20 << 20,
    "rss_shmem_bytes": 0,
    "swap_bytes": 0,
}


@pytest.fixture
def bench(bench_document: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """A model at two thread counts and two depths, and one that failed."""
    (record,) = bench_document()["bench"].values()
    rows = [
        {**record["rows"][0], **MORE, "threads": threads, "prompt_tokens": depth}
        for depth in (128, 512)
        for threads in (1, 2)
    ]
    best = {"threads": 2, "not_told_apart": [1]}
    whole = {**record, **rows[1], "rows": rows, "best": best, "load_note": "7% of the files stayed"}
    failed = {"threads": 1, "prompt_tokens": 128, "failure": {"ended": "x"}, "processes": 0}
    return {"gguf-q8_0": whole, "gone": {**failed, "rows": [failed]}, "unmeasured": None}


def test_what_was_to_be_expected_stands_first(bench: dict[str, Any]) -> None:
    expected, measured = bench_blocks(bench)
    titles = [title for title, _ in expected.headings]
    assert titles == [
        "threads",
        "depth",
        "proofs",
        "weights read",
        "KV",
        "memory",
        "ceiling",
        "decode",
        "of ceiling",
    ]
    assert len(expected.rows) == len(measured.rows) == 5
    name, threads, depth, _, *found = expected.rows[2]
    assert (name, threads, depth, *found[:4], found[5]) == (
        "gguf-q8_0", "1", "512", "3.0", "2.0", "3.0", "900", "11"
    )  # fmt: skip
    rate, low, high = (bench["gguf-q8_0"][f"decode_tokens_per_s{end}"] for end in ("", "_low", "_high"))
    assert found[4] == f"{rate:.1f} ({low:.1f} to {high:.1f})"
    assert set(expected.rows[4][3:]) == {"–"}
    assert notes_of(bench) == [
        "gguf-q8_0: 2 threads decode fastest, hardly told from 1",
        "gguf-q8_0: no cold start: 7% of the files stayed",
    ]


def test_drawings_show_every_model_and_the_right_axes(bench: dict[str, Any]) -> None:
    plots = {plot.title: plot.svg for plot in draw_bench(bench)}
    assert list(plots) == [
        "Decode rate and threads",
        "Decode rate and context depth",
        "Time of one token",
        "Memory of the process",
    ]
    words = {title: re.findall(r">([^<>]+)</text>", svg) for title, svg in plots.items()}
    assert all("gguf-q8_0" in found and "gone" not in found for found in words.values())
    assert {"1", "2", "threads"} <= set(words["Decode rate and threads"])
    assert {"128", "512"} <= set(words["Decode rate and context depth"])
    assert {"anonymous", "file-mapped", "peak"} <= set(words["Memory of the process"])
    assert "swapped out" not in words["Memory of the process"]  # nobody has any


def test_one_thread_count_and_one_depth_draw_no_line(bench_document: Callable[..., dict[str, Any]]) -> None:
    titles = [plot.title for plot in draw_bench(bench_document()["bench"])]
    assert titles == ["Time of one token", "Memory of the process"]
    assert draw_bench({"a": None}) == []


def test_page_holds_tables_and_drawings_once(bench: dict[str, Any], recipe_path: Any, tmp_path: Any) -> None:
    summary = build_summary(load_recipe(recipe_path), tmp_path, {})
    rows = [
        {"name": name, "bytes": 1, "sha256": "0", "path": "p", "format": "gguf", "bench": record}
        for name, record in bench.items()
    ]
    page = render_report({**summary, "artifacts": rows}, curves=[], answers=[], recipe_text="")
    assert page.index("What the architecture implies") < page.index("Speed, start and memory")
    assert page.count("<svg") == 5  # the trade of size and speed first
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_speed_names_the_proof_of_the_same_hash(bench_document: Callable[..., dict[str, Any]]) -> None:
    (record,) = bench_document()["bench"].values()
    parity = {
        "a": {"sha256": "1" * 64, "faults": ["bad"], "kl_nats": 0.5},
        "b": {"sha256": "2" * 64, "faults": [], "kl_nats": 0.01},
        "c": {"faults": []},
    }

    def proven(**file: Any) -> tuple[Any, Any]:
        model = copy.deepcopy(record)
        model["file"] |= file
        name_proofs([model], proofs_of(parity))
        assert {row["proofs"] for row in model["rows"]} == {model["proofs"]}
        return model["proofs"], model["kl_nats"]

    assert proven(sha256="1" * 64) == ("failed", 0.5)
    assert proven(sha256="2" * 64) == ("passed", 0.01)
    assert proven(sha256="3" * 64) == ("not proven", None)
    assert proven(sha256="3" * 64, kind="checkpoint") == (None, None)
