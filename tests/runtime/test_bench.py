from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ammd.errors import ArtifactError, EngineError
from ammd.runtime import bench, bench_child
from ammd.runtime.artifact_ref import ArtifactRef, EngineKind
from ammd.runtime.settings import BenchSettings

SETTINGS = BenchSettings(threads=(1,), prompt_tokens=20, decode_tokens=4, repetitions=2, warmup=1)


def test_stage_measures_a_file_and_a_checkpoint(
    tiny_gguf: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    artifacts = (
        ArtifactRef(name="gguf-f16", path=tiny_gguf),
        ArtifactRef(name="student", path=tiny_checkpoint),
    )
    results = bench.run(bench.BenchInputs(artifacts=artifacts), SETTINGS, tmp_path)
    assert json.loads((tmp_path / "bench.json").read_text()) == results["bench"]
    assert results["machine"]["cores"] >= results["bench"]["gguf-f16"]["threads"]
    row = results["bench"]["gguf-f16"]
    assert row["threads"] == 1
    assert row["prompt_tokens"] == 20
    assert len(row["samples"]["decode_tokens_per_s"]) == 2
    assert row["peak_rss_bytes"] > row["idle_rss_bytes"] > 0
    assert row["settings"]["flash_attention"] is True
    # torch's libraries alone are larger than all of llama.cpp
    assert results["bench"]["student"]["peak_rss_bytes"] > row["peak_rss_bytes"]


def test_a_folder_is_measured_in_the_engine_that_is_asked_for(tiny_onnx: Path, tiny_gguf: Path) -> None:
    settings = SETTINGS.model_copy(update={"repetitions": 1, "warmup": 0})
    asked = {"path": tiny_onnx, "engine": EngineKind.ONNX_RUNTIME}
    row = bench.measure_artifacts([ArtifactRef(name="a", **asked)], settings)["a"]
    assert row["engine"].startswith("onnxruntime 1.")
    assert row["settings"]["kv_cache_in_place"] is True
    with pytest.raises(EngineError, match="does not run in onnxruntime"):
        bench.measure_artifacts([ArtifactRef(name="b", **(asked | {"path": tiny_gguf}))], settings)


def test_missing_file_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no model at"):
        bench.measure_artifacts([ArtifactRef(name="a", path=tmp_path / "gone.gguf")], SETTINGS)


def test_damaged_file_is_an_engine_error(tmp_path: Path) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(b"nothing")
    with pytest.raises(EngineError, match="cannot load"):
        bench.measure_artifacts([ArtifactRef(name="a", path=path)], SETTINGS)


@pytest.mark.parametrize(
    ("asked", "available", "expected"),
    [((1, 0), 2, (1, 2)), ((0, 1), 1, (1,)), ((8, 2), 4, (2, 4)), ((0,), 3, (3,))],
)
def test_thread_counts_never_exceed_what_is_there(
    asked: tuple[int, ...], available: int, expected: tuple[int, ...]
) -> None:
    assert bench.thread_counts(asked, available=available) == expected


def test_row_holds_medians_spread_and_rates() -> None:
    sample = {
        "engine": "e",
        "settings": {},
        "load_s": 0.5,
        "ttft_s": [0.1, 0.4],
        "prefill_s": [0.1, 0.2],
        "token_s": [[0.1] * 4, [0.2] * 4],
        "peak_rss_bytes": 3,
        "rss_anon_bytes": 2,
        "idle_rss_bytes": 1,
    }
    row = bench.summarize(sample, SETTINGS, threads=1)
    assert row["ttft_s"] == pytest.approx(0.25)
    assert row["prefill_tokens_per_s"] == pytest.approx(150)  # 200 and 100
    assert row["decode_tokens_per_s"] == pytest.approx(7.5)  # 10 and 5
    assert row["decode_tokens_per_s_mad"] == pytest.approx(2.5)
    assert row["decode_tokens_per_s_min"] == pytest.approx(5)
    assert row["token_p50_s"] == 0.1
    assert row["token_p95_s"] == 0.2


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
    assert timed == bench_child.Pass(ttft_s=1.0, prefill_s=1.0, token_s=(0.25, 0.25, 0.25))


def test_prompt_is_real_text_of_sufficient_length(make_engine: Callable) -> None:
    engine = make_engine(lambda sequence: np.zeros(256, dtype=np.float32))
    text = bench_child.prompt_text(engine, tokens=1000)
    assert len(engine.tokenize(text)) >= 1000
    assert text.startswith("Water that falls")
