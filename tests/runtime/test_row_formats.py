"""Rows as other programs read them: Python's own parsers, sqlite3, llama.cpp's list of fields, its compare script."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import sqlite3
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ammd.runtime.bench_document import parse_document
from ammd.runtime.llama_bench_rows import COLUMNS, OURS, THEIRS, Proof, bench_rows
from ammd.runtime.row_formats import as_csv, as_jsonl, as_markdown, as_sql

PROOFS = {"0" * 64: Proof(kl_nats=0.003, passed=True)}


def rows_of(document: dict[str, Any], **options: Any) -> list[dict[str, Any]]:
    return bench_rows(parse_document(document, label="x"), **({"proofs": {}} | options))


@pytest.fixture
def rows(bench_document: Callable) -> list[dict[str, Any]]:
    document = bench_document()
    document["bench"]["gguf-q8_0"]["file"]["name"] = 'it\'s, "x"|y.gguf'
    return rows_of(document, proofs=PROOFS)


def test_a_row_for_prefill_and_one_for_decode(bench_document: Callable) -> None:
    document = bench_document(repetitions=2)
    prefill, decode = rows_of(document, proofs=PROOFS)
    rates = [rate for one in document["bench"]["gguf-q8_0"]["samples"] for rate in one["decode_tokens_per_s"]]
    assert (prefill["test"], prefill["n_prompt"], prefill["n_gen"]) == ("pp128", 128, 0)
    assert (decode["test"], decode["n_prompt"], decode["n_gen"]) == ("tg64", 0, 64)
    assert (prefill["n_depth"], decode["n_depth"]) == (0, 128)
    assert decode["avg_ts"] == statistics.mean(rates)
    assert decode["stddev_ts"] == statistics.stdev(rates)
    assert decode["samples_ts"] == rates
    assert decode["avg_ns"] == pytest.approx(statistics.mean(64e9 / rate for rate in rates), abs=1)
    assert (
        decode["median_ts_low"] <= decode["median_ts"] == statistics.median(rates) <= decode["median_ts_high"]
    )
    assert decode["token_p50_s"] <= decode["token_p90_s"] <= decode["token_p99_s"]
    assert (prefill["token_p50_s"], decode["ttft_s"]) == (None, None)
    assert prefill["ttft_s"] == document["bench"]["gguf-q8_0"]["ttft_s"]
    assert (decode["kl_nats"], decode["proofs"]) == (0.003, "passed")


def test_what_is_not_known_is_empty_and_never_made_up(bench_document: Callable) -> None:
    document = bench_document()
    row = document["bench"]["gguf-q8_0"]["rows"][0]
    row["engine"], row["settings"] = "onnxruntime 1.32.0", {"kv_cache_type": "f32"}
    document["bench"]["gguf-q8_0"]["file"] |= {"weight_bytes": None, "parameters": None}
    (found, _) = rows_of(document)
    for name in (
        "model_size",
        "model_n_params",
        "n_batch",
        "flash_attn",
        "load_mode",
        "poll",
        "build_number",
    ):
        assert found[name] == ""
    assert (found["type_k"], found["kl_nats"], found["proofs"]) == ("f32", None, None)
    (known, _) = rows_of(bench_document())
    assert (known["model_size"], known["n_batch"], known["flash_attn"]) == (1_000_000, 512, 1)


def test_a_build_is_all_that_is_under_test(bench_document: Callable) -> None:
    def build(change: Callable[[dict[str, Any]], None], **options: Any) -> str:
        document = bench_document(**options)
        change(document["bench"]["gguf-q8_0"])
        (row, _) = rows_of(document)
        return row["build_commit"]

    first = build(lambda model: None)
    assert re.fullmatch("[0-9a-f]{8}", first)
    assert build(lambda model: None, seed=9) == first
    assert build(lambda model: model["rows"][0].update(engine="llama.cpp (llama-cpp-python 0.4.0)")) != first
    assert build(lambda model: model["file"].update(sha256="2" * 64)) != first


def test_json_lines_are_read_back(rows: list[dict[str, Any]]) -> None:
    assert [json.loads(line) for line in as_jsonl(rows).splitlines()] == rows


def test_csv_is_read_back(rows: list[dict[str, Any]]) -> None:
    read = list(csv.DictReader(io.StringIO(as_csv(rows))))
    assert len(read) == len(rows)
    for found, row in zip(read, rows, strict=True):
        assert found == {name: "" if row[name] is None else str(row[name]) for name in COLUMNS}


def test_sqlite_takes_the_statements_twice(rows: list[dict[str, Any]]) -> None:
    with sqlite3.connect(":memory:") as connection:
        connection.row_factory = sqlite3.Row
        connection.executescript(as_sql(rows) + as_sql(rows))
        read = [dict(row) for row in connection.execute("SELECT * FROM llama_bench")]
        fast = connection.execute("SELECT AVG(avg_ts) FROM llama_bench WHERE n_gen = 64").fetchone()[0]
    connection.close()
    assert read == [{name: row[name] for name in COLUMNS} for row in rows * 2]
    assert fast == pytest.approx(rows[1]["avg_ts"])


def test_markdown_is_a_table_with_the_columns_that_somebody_has(rows: list[dict[str, Any]]) -> None:
    def cells(text: str) -> list[list[str]]:
        lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines()]
        return [[cell.strip() for cell in line] for line in lines]

    titles, sides, prefill, decode = cells(as_markdown(rows))
    assert {len(line) for line in (titles, sides, prefill, decode)} == {len(titles)}
    assert titles[:5] == ["model", "size MiB", "params M", "backend", "engine"]
    assert decode[titles.index("t/s")] == f"{rows[1]['avg_ts']:.2f} ± {rows[1]['stddev_ts']:.2f}"
    assert prefill[titles.index("KL nats")] == "0.003"
    assert (prefill[titles.index("p95 ms")], decode[titles.index("TTFT ms")]) == ("", "")
    bare = [row | {"kl_nats": None, "proofs": None} for row in rows]
    assert not {"KL nats", "proofs"} & set(cells(as_markdown(bare))[0])


def test_no_column_is_named_twice() -> None:
    assert not set(THEIRS) & set(OURS)


@pytest.fixture(scope="session")
def llama_cpp_tree() -> Path:
    from ammd.llama_source import source_tree

    return source_tree()


@pytest.mark.real
def test_columns_are_those_of_llama_bench(llama_cpp_tree: Path) -> None:
    code = (llama_cpp_tree / "tools" / "llama-bench" / "llama-bench.cpp").read_text(encoding="utf-8")
    (fields,) = re.findall(r"get_fields\(\) \{.*?fields = \{(.*?)\};", code, flags=re.DOTALL)
    assert re.findall(r'"(\w+)"', fields) == list(THEIRS)


# The script needs two packages for its surroundings: tabulate prints, GitPython names commits where it runs in a
# repository. Outside of one, this is all that it asks of them.
GIT = """\
class InvalidGitRepositoryError(Exception): ...
class Commit: ...
class Repo:
    def __init__(self, *arguments, **options): raise InvalidGitRepositoryError
"""
TABULATE = """\
import json
def tabulate(table, headers, **options): return json.dumps([dict(zip(headers, row)) for row in table])
"""


@pytest.mark.real
@pytest.mark.parametrize("form", ["jsonl", "sqlite", "csv"])
def test_llama_cpps_compare_script_compares_two_benchmarks(
    llama_cpp_tree: Path, tmp_path: Path, bench_document: Callable, form: str
) -> None:
    script = llama_cpp_tree / "scripts" / "compare-llama-bench.py"
    (tmp_path / "git.py").write_text(GIT)
    (tmp_path / "tabulate.py").write_text(TABULATE)
    old, new = bench_document(), bench_document(seed=1, slowdown=0.1)
    new["bench"]["gguf-q8_0"]["rows"][0]["engine"] = "llama.cpp (llama-cpp-python 0.4.0)"
    both = [rows_of(old), rows_of(new)]
    paths = [tmp_path / f"bench-{index}.{form}" for index in range(2 if form == "csv" else 1)]
    if form == "jsonl":
        paths[0].write_text("".join(map(as_jsonl, both)))
    elif form == "csv":
        for path, rows in zip(paths, both, strict=True):
            path.write_text(as_csv(rows))
    else:
        with sqlite3.connect(paths[0]) as connection:
            connection.executescript("".join(map(as_sql, both)))
        connection.close()
    builds = [rows[0]["build_commit"] for rows in both]
    inputs = [word for path in paths for word in ("-i", str(path))]
    done = subprocess.run(
        [sys.executable, str(script), "-t", "llama-bench", *inputs, "-b", builds[0], "-c", builds[1]],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    table = json.loads(done.stdout)
    assert [(row["Model"], row["Test"]) for row in table] == [
        ("gguf-q8_0", "pp128"),
        ("gguf-q8_0", "tg64@d128"),
    ]
    for row, before, after in zip(table, *both, strict=True):
        assert float(row["Speedup"]) == pytest.approx(after["avg_ts"] / before["avg_ts"])
