"""`ammd bench --profile` as a user meets it: measured and projected apart in every form."""

import csv
import io
import json
import sqlite3

import gguf
import numpy as np
import pytest

from ammd.runtime import profile_document
from ammd.runtime.limited_run import Broken


@pytest.fixture
def quick(monkeypatch):
    """The run under limits without its process; `peak` MiB is what it finds."""

    def run(artifact, limits, *, prompt_tokens, decode_tokens, peak=100):
        row = dict.fromkeys(profile_document.UNDER_LIMITS, 1) | {
            "kind": "measured",
            "measured_on": "this machine",
            "file": artifact.name,
            "engine": "e",
            "memory_limit_bytes": limits.memory_bytes,
            "memory_limit_by": "watched",
            "passes": limits.memory_bytes > peak << 20,
            "broken": "" if limits.memory_bytes > peak << 20 else "memory: 7 MiB over",
        }
        return row, ([] if row["passes"] else [Broken(limit="memory", text=row["broken"])])

    monkeypatch.setattr(profile_document, "run_under_limits", run)
    return run


def test_json_has_both_kinds_in_lists_of_their_own(ammd, quick, tiny_gguf_file):
    code, out, _ = ammd("bench", tiny_gguf_file, "--profile", "pixel-8", "--json")
    document = json.loads(out)
    assert code == 0
    assert document["schema"] == "ammd.profile/1"
    assert [row["kind"] for row in document["under_limits"]] == ["measured"]
    assert [row["kind"] for row in document["projected"]] == ["projected"]  # float32: no prefill
    assert document["not_projected"][0]["reason"]
    row = document["projected"][0]
    assert row["projected_low"] < row["projected_tokens_per_s"] < row["projected_high"]


def test_no_form_has_a_column_for_both_kinds(ammd, quick, tiny_gguf_file):
    def printed(form):
        return ammd("bench", tiny_gguf_file, "--profile", "pixel-8", "--format", form)[1]

    numbers = ("load_s", "ttft_s", "decode_tokens_per_s", "prefill_tokens_per_s", "peak_rss_bytes")
    rows = list(csv.DictReader(io.StringIO(printed("csv"))))
    lines = [json.loads(line) for line in printed("jsonl").splitlines()]
    for measured, projected in (rows, lines):
        assert (measured["kind"], projected["kind"]) == ("measured", "projected")
        assert not any(projected.get(name) for name in numbers)
        assert not any(value for name, value in measured.items() if name.startswith("projected"))
        assert float(projected["projected_low"]) > 0
    base = sqlite3.connect(":memory:")
    base.executescript(printed("sql"))
    assert base.execute("SELECT kind, passes FROM under_limits").fetchall() == [("measured", 1)]
    assert base.execute("SELECT kind FROM projected").fetchall() == [("projected",)]
    first, second = printed("md").split("\n\n**")
    assert "measured on this machine" in first and "projected, not measured" in second
    table = printed("table")
    assert "pixel-8: projected, not measured" in table
    assert "published rates of" in table


def test_a_broken_limit_exits_7_with_its_numbers(ammd, quick, monkeypatch, tiny_gguf_file):
    def run(*arguments, **named):
        return quick(*arguments, **named, peak=10_000)

    monkeypatch.setattr(profile_document, "run_under_limits", run)
    code, out, err = ammd("bench", tiny_gguf_file, "--profile", "pixel-8", "--json")
    assert code == 7
    assert json.loads(out)["under_limits"][0]["passes"] is False
    assert "under the limits of pixel-8: memory: 7 MiB over" in err


def test_an_anchor_narrows_and_is_named(ammd, quick, tiny_gguf_file):
    arguments = ("bench", tiny_gguf_file, "--profile", "pixel-8", "--json", "--anchor")
    code, out, _ = ammd(*arguments, f"{tiny_gguf_file}=50")
    (row,) = json.loads(out)["projected"]
    assert code == 0
    assert row["projected_from"].startswith("measured there: ")
    # The same file, 128 tokens deeper.
    weights, cache = row["weight_bytes_per_token"], 128 * row["kv_bytes_per_token"]
    assert row["projected_tokens_per_s"] == pytest.approx(50 * weights / (weights + cache))
    for anchor, code in ((f"{tiny_gguf_file}=fast", 2), ("gone.json", 3), ("gone.gguf=3", 3)):
        assert ammd(*arguments, anchor)[0] == code


def test_profiles_are_listed_without_files_and_wrong_ones_refused(ammd, tiny_gguf_file):
    code, out, _ = ammd("bench", "--profile", "list")
    assert code == 0
    assert "Tensor G3" in out and "raspberry-pi-5" in out
    assert ammd("bench", tiny_gguf_file, "--profile", "pixel-88")[0] == 2
    assert ammd("bench", tiny_gguf_file, "--anchor", "x")[0] == 2
    assert ammd("bench", tiny_gguf_file, "--profile", "pixel-8", "--baseline", "b.json")[0] == 2
    code, _, err = ammd("bench", tiny_gguf_file, "--profile", "pixel-8", "--set", "prompt_tokens=5000")
    assert (code, "do not fit" in err) == (2, True)


@pytest.fixture(scope="module")
def tiny_gguf_file(tmp_path_factory):
    """A file of one layer that tells what it holds; nothing here runs it."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_embedding_length(32)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_tensor("token_embd.weight", np.zeros((10, 32), np.float32))
    writer.add_tensor("blk.0.ffn_up.weight", np.zeros((64, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
