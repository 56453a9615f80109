from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ammd.errors import ArtifactError, EngineError
from ammd.runtime import bench, bench_child, host, validity
from ammd.runtime.artifact_ref import ArtifactRef, EngineKind
from ammd.runtime.bench_document import parse_document
from ammd.runtime.settings import BenchSettings
from ammd.runtime.stopping import plan_of

SETTINGS = BenchSettings(
    threads=(1,),
    cold_loads=0,
    bandwidth=False,
    prompt_tokens=20,
    decode_tokens=4,
    processes=1,
    max_processes=1,
    retries=0,
    repetitions=2,
    max_repetitions=2,
    max_warmup=1,
)


def test_stage_measures_a_file_and_a_checkpoint(
    tiny_gguf: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    artifacts = (
        ArtifactRef(name="gguf-f16", path=tiny_gguf),
        ArtifactRef(name="student", path=tiny_checkpoint),
    )
    results = bench.run(bench.BenchInputs(artifacts=artifacts), SETTINGS, tmp_path)
    assert results["validity_rule"]["steal_share"]["invalid"] == validity.RULE["steal_share"].invalid
    assert json.loads((tmp_path / "bench.json").read_text()) == results["bench"]
    assert results["machine"]["cores"] >= results["bench"]["gguf-f16"]["threads"]
    row = results["bench"]["gguf-f16"]
    assert row["threads"] == 1
    assert row["prompt_tokens"] == 20
    assert [len(one["decode_tokens_per_s"]) for one in row["samples"]] == [2]
    assert row["file"] == {
        "name": "tiny-f32.gguf",
        "kind": "gguf",
        "bytes": tiny_gguf.stat().st_size,
        "sha256": hashlib.sha256(tiny_gguf.read_bytes()).hexdigest(),
        "weight_bytes": 4 * row["file"]["parameters"],  # float32
        "parameters": numbers_of(tiny_checkpoint),
    }
    assert results["bench"]["student"]["file"]["kind"] == "checkpoint"
    assert row["peak_rss_bytes"] > row["idle_rss_bytes"] > 0
    assert row["settings"]["flash_attention"] is True
    assert (row["warmup_passes"], row["warmed_up_by"]) == ([1], ["max_warmup"])
    assert [len(one["ttft_s"]) for one in row["discarded"]] == [1]
    assert row["passes_stopped_by"] == ["max_repetitions"]
    assert row["stopped_by"] in {"target", "max_processes"}
    assert row["validity"] in {"good", "noisy", "invalid"}
    (noise,) = row["noise"]
    assert noise["seconds"] > 0
    assert 0 <= noise["harness_cpu_share"] < 1
    # torch's libraries alone are larger than all of llama.cpp
    assert results["bench"]["student"]["peak_rss_bytes"] > row["peak_rss_bytes"]


def test_a_folder_is_measured_in_the_engine_that_is_asked_for(tiny_onnx: Path, tiny_gguf: Path) -> None:
    settings = SETTINGS.model_copy(
        update={"repetitions": 1, "max_repetitions": 1, "warmup": 0, "max_warmup": 0}
    )
    asked = {"path": tiny_onnx, "engine": EngineKind.ONNX_RUNTIME}
    row = bench.measure_artifacts([ArtifactRef(name="a", **asked)], settings)["a"]
    assert row["engine"].startswith("onnxruntime 1.")
    assert row["settings"]["kv_cache_in_place"] is True
    with pytest.raises(EngineError, match="does not run in onnxruntime"):
        bench.measure_artifacts([ArtifactRef(name="b", **(asked | {"path": tiny_gguf}))], settings)


def test_missing_file_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no model at"):
        bench.measure_artifacts([ArtifactRef(name="a", path=tmp_path / "gone.gguf")], SETTINGS)


def test_what_cannot_be_loaded_is_a_row_and_the_rest_is_measured(tmp_path: Path, tiny_gguf: Path) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(b"nothing")
    refs = [ArtifactRef(name="bad", path=path), ArtifactRef(name="good", path=tiny_gguf)]
    results = bench.run(bench.BenchInputs(artifacts=tuple(refs)), SETTINGS, tmp_path)
    rows = results["bench"]
    assert results["failed_parts"] == ["bad, 1 thread"]  # so the next `ammd run` measures again
    assert rows["good"]["decode_tokens_per_s"] > 0
    (row,) = rows["bad"]["rows"]
    assert "cannot load" in row["failure"]["ended"]
    assert (row["validity"], row["validity_reasons"]) == ("invalid", [row["failure"]["ended"]])
    assert (row["failure"]["exit_status"], row["failure"]["signal"]) == (None, None)
    document = {"schema": "ammd.bench/2", "bench": rows, "machine": {"cpu": None, "cores": 1}}
    read = parse_document(json.loads(json.dumps(document)), label="x")
    assert [row.engine.split()[0] for row in read.rows] == ["llama.cpp"]
    assert read.bench["bad"].failures[0].failure.ended == row["failure"]["ended"]


def test_passes_that_do_not_count_are_told_apart() -> None:
    """A model whose first passes are slow: they are thrown away, and only they."""
    seconds = iter([2.0, 1.2, *[1.0] * 50])
    now = 0.0

    def one_pass() -> bench_child.Pass:
        nonlocal now
        took = next(seconds)
        now += took
        return bench_child.Pass(ttft_s=took, prefill_s=took, token_s=(took,))

    request = {"warmup": 1, "max_warmup": 10, "repetitions": 3, "max_repetitions": 30, "min_seconds": 5.0}
    plan = plan_of(request | {"max_seconds": 100.0, "target_interval": 0.01})
    passes = bench_child.make_passes(one_pass, plan, clock=lambda: now)
    assert [one.ttft_s for one in passes.discarded] == [2.0, 1.2, 1.0, 1.0, 1.0, 1.0]
    assert [one.ttft_s for one in passes.measured] == [1.0] * 6  # a multiple of 3 that lasts 5 s
    assert (passes.warmed_up_by.value, passes.stopped_by.value) == ("agreement", "target")


def test_row_holds_medians_spread_and_rates() -> None:
    row = bench.summarize([process()], SETTINGS, threads=1)
    assert row["ttft_s"] == pytest.approx(0.25)
    assert row["prefill_tokens_per_s"] == pytest.approx(150)  # 200 and 100
    assert row["decode_tokens_per_s"] == pytest.approx(7.5)  # 10 and 5
    assert row["decode_tokens_per_s_mad"] == pytest.approx(2.5)
    assert row["decode_tokens_per_s_min"] == pytest.approx(5)
    assert row["token_p50_s"] == 0.1
    assert row["token_p90_s"] == row["token_p95_s"] == row["token_p99_s"] == 0.2
    assert row["processes"] == 1


def test_samples_are_kept_by_process_and_medians_are_over_all() -> None:
    processes = [
        process(ttft_s=[1.0, 1.0], load_s=1.0, peak_rss_bytes=30, rss_anon_bytes=None),
        process(ttft_s=[2.0, 2.0], load_s=2.0, peak_rss_bytes=10, rss_anon_bytes=None),
        process(ttft_s=[9.0, 9.0], load_s=9.0, peak_rss_bytes=20, rss_anon_bytes=None),
    ]
    row = bench.summarize(processes, SETTINGS, threads=1)
    assert [one["ttft_s"] for one in row["samples"]] == [[1, 1], [2, 2], [9, 9]]
    assert (row["processes"], row["ttft_s"], row["load_s"], row["peak_rss_bytes"]) == (3, 2, 2, 20)
    # Whole processes are drawn: 9 s is the median of more than 2.5 % of the draws, as of one of 27 it is all there is.
    assert (row["ttft_s_low"], row["ttft_s_high"]) == (1, 9)
    assert row["rss_anon_bytes"] is None


def test_each_process_is_a_fresh_one_and_all_cells_take_turns(
    monkeypatch: pytest.MonkeyPatch, tiny_gguf: Path, tiny_onnx: Path
) -> None:
    asked = []

    def call(target: str, request: dict[str, Any]) -> dict[str, Any]:
        asked.append((Path(request["path"]).suffix, request["threads"]))
        return process()

    monkeypatch.setattr(host, "call", call)
    settings = SETTINGS.model_copy(update={"processes": 2, "max_processes": 2})
    refs = [ArtifactRef(name="a", path=tiny_gguf), ArtifactRef(name="b", path=tiny_onnx)]
    rows = bench.measure_artifacts(refs, settings)
    assert asked == [(".gguf", 1), ("", 1)] * 2
    assert rows["b"]["processes"] == 2


def process(**changes: Any) -> dict[str, Any]:
    """What a child tells of two passes of four tokens."""
    return {
        "engine": "e",
        "measured_at": "2026-01-01T00:00:00Z",
        "settings": {},
        "load_s": 0.5,
        "ttft_s": [0.1, 0.4],
        "prefill_s": [0.1, 0.2],
        "token_s": [[0.1] * 4, [0.2] * 4],
        "peak_rss_bytes": 3,
        "rss_anon_bytes": 2,
        "idle_rss_bytes": 1,
        "discarded": {"ttft_s": [], "prefill_s": [], "token_s": []},
        "warmed_up_by": "max_warmup",
        "stopped_by": "max_repetitions",
        "noise": {
            "seconds": 2.0,
            "competing_share": 0.0,
            "steal_share": 0.0,
            "throttled_share": None,
        },
    } | changes


def numbers_of(checkpoint: Path) -> int:
    from safetensors.numpy import load_file

    return sum(tensor.size for tensor in load_file(checkpoint / "model.safetensors").values())


def test_percentile_is_a_measured_value() -> None:
    values = [1.0, 2.0, 3.0, 4.0]
    assert [bench.percentile(values, percent) for percent in (50, 75, 76, 95, 100)] == [2, 3, 4, 4, 4]
    assert bench.percentile([5.0], 1) == 5


def test_pass_is_timed_by_the_clock_it_is_given(make_engine: Callable) -> None:
    now: dict[str, Any] = {"s": 0.0}

    def rule(sequence: list[int]) -> np.ndarray:
        now["s"] += 1.0 if len(sequence) == 5 else 0.25  # the prompt takes a second, a token a quarter
        return np.zeros(256, dtype=np.float32)

    timed = bench_child.time_pass(
        make_engine(rule), "some text", prompt_tokens=5, decode_tokens=3, clock=lambda: now["s"]
    )
    assert (timed.ttft_s, timed.prefill_s, timed.token_s) == (1.0, 1.0, (0.25, 0.25, 0.25))
    assert 0 < timed.decode_cpu_s < 60  # this process' own, whatever the clock says


def test_prompt_is_real_text_of_sufficient_length(make_engine: Callable) -> None:
    engine = make_engine(lambda sequence: np.zeros(256, dtype=np.float32))
    text = bench_child.prompt_text(engine, tokens=1000)
    assert len(engine.tokenize(text)) >= 1000
    assert text.startswith("Water that falls")


def test_depths_are_rows_of_their_own_and_all_that_surrounds_a_speed_is_in_it(tiny_gguf: Path) -> None:
    settings = SETTINGS.model_copy(
        update={"threads": "sweep", "depths": (0, 40), "cold_loads": 1, "bandwidth": True, "repetitions": 1}
    )
    record = bench.measure_artifacts([ArtifactRef(name="a", path=tiny_gguf)], settings)["a"]
    counts = sorted({row["threads"] for row in record["rows"]})
    assert [(row["prompt_tokens"], row["threads"]) for row in record["rows"]] == [
        (depth, threads) for depth in (20, 40) for threads in counts
    ]
    assert record["prompt_tokens"] == 20
    assert record["best"]["threads"] == record["threads"]
    assert record["decode_tokens_per_s"] == max(
        row["decode_tokens_per_s"] for row in record["rows"] if row["prompt_tokens"] == 20
    )
    for row in record["rows"]:
        assert row["kv_cache_bytes"] == row["kv_bytes_per_token"] * (row["prompt_tokens"] + 4)
        assert row["weight_bytes_per_token"] == record["file"]["weight_bytes"]
        assert row["decode_of_ceiling"] == row["decode_tokens_per_s"] / row["decode_ceiling_tokens_per_s"]
        assert row["load_warm_s"] > 0
        assert row["cpu_s_per_token"] > 0
        assert (row["load_cold_s"] is None) == bool(row["load_note"])
        assert row["rss_anon_bytes"] + row["rss_file_bytes"] <= row["peak_rss_bytes"] * 1.02


def test_profiles_of_a_recipe_get_the_files_and_no_checkpoint(
    tiny_gguf: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, list[str]]] = []

    def measure_profile(files: list[ArtifactRef], name: str, **_: object) -> dict[str, object]:
        asked.append((name, [one.name for one in files]))
        return {"profile": name}

    monkeypatch.setattr(bench, "measure_profile", measure_profile)
    monkeypatch.setattr(bench, "measure_artifacts", lambda artifacts, settings: {})
    artifacts = (ArtifactRef(name="f", path=tiny_gguf), ArtifactRef(name="student", path=tiny_checkpoint))
    inputs = bench.BenchInputs(artifacts=artifacts)
    settings = BenchSettings(profiles=("pixel-8", "iphone-16"))
    found = bench.run(inputs, settings, tmp_path)["profiles"]
    assert asked == [("pixel-8", ["f"]), ("iphone-16", ["f"])]
    assert found == [{"profile": "pixel-8"}, {"profile": "iphone-16"}]
    assert "profiles" not in bench.run(inputs, BenchSettings(), tmp_path)
    with pytest.raises(ValueError, match="no profile `pixel-88`"):
        BenchSettings(profiles=("pixel-88",))
