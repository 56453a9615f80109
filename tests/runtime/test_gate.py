"""The comparison of two benchmarks, on samples that no engine had to make."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from ammd.errors import ArtifactError, BudgetExceededError, NotComparableError
from ammd.runtime.bench_document import parse_document, read_document
from ammd.runtime.gate import Gate, Verdict, check, check_plan, compare, verdict_of
from ammd.runtime.settings import BenchSettings

MACHINE = {"cpu": "a CPU", "cores": 2}


def compared(old: Mapping[str, Any], new: Mapping[str, Any], *, limit: float = 0.05, seed: int = 0) -> Gate:
    baseline, current = parse_document(old, label="old"), parse_document(new, label="new")
    return compare(baseline, current, max_regression=limit, generator=np.random.default_rng(seed))


def verdicts(gate: Gate) -> dict[str, str]:
    return {finding.metric: finding.verdict.value for finding in gate.findings}


def test_ten_per_cent_less_is_found_through_two_per_cent_of_noise(bench_document: Callable) -> None:
    for seed in range(20):
        old = bench_document(noise=0.02, seed=seed)
        new = bench_document(noise=0.02, seed=seed + 1000, slowdown=0.10)
        gate = compared(old, new, seed=seed)
        assert verdicts(gate) == {
            "decode_tokens_per_s": "regression",
            "prefill_tokens_per_s": "regression",
            "ttft_s": "regression",
            "peak_rss_bytes": "fine",
        }
        decode = gate.findings[0]
        assert decode.low < decode.ratio < decode.high < 0.95
        assert decode.ratio == pytest.approx(decode.current / decode.baseline)
    with pytest.raises(
        BudgetExceededError, match=r"`x-q8_0.gguf, 2 threads`: `decode_.*and 2 more"
    ) as caught:
        check(gate)
    assert caught.value.exit_code == 7
    metrics = [row["metric"] for row in caught.value.facts["regressions"]]
    assert metrics == ["decode_tokens_per_s", "prefill_tokens_per_s", "ttft_s"]


def test_the_same_speed_is_fine_in_95_of_100_draws_and_never_a_regression(bench_document: Callable) -> None:
    fine = 0
    for seed in range(100):
        gate = compared(bench_document(seed=seed), bench_document(seed=seed + 1000), seed=seed)
        found = set(verdicts(gate).values())
        assert "regression" not in found
        fine += found == {"fine"}
        check(gate)
    assert fine >= 95


def test_noise_between_processes_fails_no_build(bench_document: Callable) -> None:
    failed = 0
    for seed in range(100):
        old, new = (bench_document(seed=seed + more, process_noise=0.03) for more in (0, 1000))
        failed += "regression" in verdicts(compared(old, new, seed=seed)).values()
    assert failed <= 2  # of 100 at a true ratio of 1 and a limit of 0.95


def test_one_slow_process_of_three_does_not_decide(bench_document: Callable) -> None:
    new = bench_document(seed=1)
    for row in new["bench"]["gguf-q8_0"]["rows"]:
        slow = row["samples"][0]
        slow["decode_tokens_per_s"] = [rate / 2 for rate in slow["decode_tokens_per_s"]]
    assert verdicts(compared(bench_document(), new))["decode_tokens_per_s"] in {"fine", "undecided"}
    check(compared(bench_document(), new))


def test_more_memory_is_judged_by_its_ratio(bench_document: Callable) -> None:
    old, new = bench_document(), bench_document()
    new["bench"]["gguf-q8_0"]["rows"][0]["peak_rss_bytes"] = int(1.06 * 2**28)
    gate = compared(old, new)
    assert verdicts(gate)["peak_rss_bytes"] == "regression"
    assert gate.findings[3].low is None
    assert verdicts(compared(old, new, limit=0.07))["peak_rss_bytes"] == "fine"


@pytest.mark.parametrize(
    ("low", "high", "higher_is_better", "expected"),
    [
        (0.90, 0.94, True, Verdict.REGRESSION),
        (0.94, 0.96, True, Verdict.UNDECIDED),
        (0.95, 1.20, True, Verdict.FINE),
        (1.06, 1.10, False, Verdict.REGRESSION),
        (1.04, 1.06, False, Verdict.UNDECIDED),
        (0.50, 1.05, False, Verdict.FINE),
        (1.06, 1.10, True, Verdict.FINE),
        (0.90, 0.94, False, Verdict.FINE),
    ],
)
def test_verdict_is_about_the_whole_interval(
    low: float, high: float, higher_is_better: bool, expected: Verdict
) -> None:
    assert verdict_of(low, high, max_regression=0.05, higher_is_better=higher_is_better) is expected


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("machine", "cpu"), "another", "`cpu` was `a CPU`, is `another`"),
        (("machine", "cores"), 4, "`cores` was `2`, is `4`"),
        (("row", "prompt_tokens"), 64, "`prompt_tokens` was `128`, is `64`"),
        (("row", "decode_tokens"), 8, "`decode_tokens` was `64`, is `8`"),
        (("row", "warmup"), 0, "`warmup` was `1`, is `0`"),
        (("row", "engine"), "onnxruntime 1.32.0", r"`engine` was `llama.cpp \(llama-cpp-python`, is `onnxr"),
        (("settings", "flash_attention"), False, "`settings.flash_attention` was `True`, is `False`"),
        (("settings", "spinning"), True, "`settings.spinning` was `absent`, is `True`"),
        (("file", "kind"), "onnx", "`file.kind` was `gguf`, is `onnx`"),
        (("row", "threads"), 1, "the baseline has `x-q8_0.gguf, 2 threads`, this benchmark .*, 1 thread`"),
        (("file", "name"), "y.gguf", "this benchmark `y.gguf, 2 threads`"),
    ],
)
def test_what_differs_is_named_with_both_values(
    bench_document: Callable, place: tuple[str, str], value: object, message: str
) -> None:
    new = bench_document()
    model = new["bench"]["gguf-q8_0"]
    row = model["rows"][0]
    parts = {"machine": new["machine"], "row": row, "settings": row["settings"], "file": model["file"]}
    parts[place[0]][place[1]] = value
    with pytest.raises(NotComparableError, match=message) as caught:
        compared(bench_document(), new)
    assert caught.value.exit_code == 6


def test_another_version_and_other_passes_are_what_is_compared(bench_document: Callable) -> None:
    new = bench_document(repetitions=9, processes=4)
    new["bench"]["gguf-q8_0"]["rows"][0]["engine"] = "llama.cpp (llama-cpp-python 0.4.0)"
    new["bench"]["gguf-q8_0"]["file"]["sha256"] = "1" * 64
    assert set(verdicts(compared(bench_document(), new)).values()) == {"fine"}


def test_models_of_one_side_alone_are_said(bench_document: Callable) -> None:
    old, new = bench_document(), bench_document()
    for document, name in ((old, "a.gguf"), (new, "b.gguf")):
        document["bench"][name] = copy.deepcopy(document["bench"]["gguf-q8_0"])
        document["bench"][name]["file"]["name"] = name
    gate = compared(old, new)
    assert (gate.only_in_baseline, gate.only_in_current) == (("a.gguf, 2 threads",), ("b.gguf, 2 threads",))
    assert {finding.model for finding in gate.findings} == {"x-q8_0.gguf"}


def test_files_of_one_name_are_told_apart_by_their_models(bench_document: Callable) -> None:
    document = bench_document()
    document["bench"]["other/gguf-q8_0"] = copy.deepcopy(document["bench"]["gguf-q8_0"])
    gate = compared(document, document)
    assert {finding.model for finding in gate.findings} == {"gguf-q8_0", "other/gguf-q8_0"}


def test_too_few_processes_are_refused_before_any_work(bench_document: Callable) -> None:
    old = parse_document(bench_document(), label="old")
    check_plan(old, BenchSettings(), machine=MACHINE)
    with pytest.raises(NotComparableError, match="2 of at least 3 processes") as caught:
        check_plan(old, BenchSettings(processes=2), machine=MACHINE)
    assert caught.value.hint == "`--set processes=3`"
    few = parse_document(bench_document(processes=2), label="old")
    with pytest.raises(NotComparableError, match="2 of at least 3") as caught:
        check_plan(few, BenchSettings(), machine=MACHINE)
    assert "measure the baseline anew" in caught.value.hint


def test_another_device_or_protocol_is_refused_before_any_work(bench_document: Callable) -> None:
    old = parse_document(bench_document(), label="old")
    with pytest.raises(NotComparableError, match="`cores` was `2`, is `8`"):
        check_plan(old, BenchSettings(), machine=MACHINE | {"cores": 8})
    with pytest.raises(NotComparableError, match="`prompt_tokens` was `128`, is `9`"):
        check_plan(old, BenchSettings(prompt_tokens=9), machine=MACHINE)


def test_document_is_read_back(bench_document: Callable, tmp_path: Any) -> None:
    path = tmp_path / "b.json"
    path.write_text(json.dumps(bench_document()))
    assert read_document(path) == parse_document(bench_document(), label="x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "has the schema `None`"),
        ('{"schema": "ammd.run/1"}', "has the schema `ammd.run/1`, not `ammd.bench/2`"),
        ('{"schema": "ammd.bench/2", "bench": {}}', "is damaged: `bench`"),
        ("\xff", "is not JSON"),
    ],
)
def test_foreign_and_damaged_files_are_refused_in_one_line(tmp_path: Any, text: str, message: str) -> None:
    path = tmp_path / "b.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ArtifactError, match=message) as caught:
        read_document(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(ArtifactError, match="cannot read"):
        read_document(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: row["samples"][0]["ttft_s"].pop(), "unequally many"),
        (lambda row: row["samples"].pop(), "not as many samples as processes"),
        (lambda row: row["samples"][1]["ttft_s"].__setitem__(0, 0.0), "greater than 0"),
        (
            lambda row: row["samples"][1]["ttft_s"].__setitem__(0, float("nan")),
            "`bench.gguf-q8_0.rows.0.samples.1",
        ),
        (lambda row: row.pop("engine"), "`bench.gguf-q8_0.rows.0.engine`"),
    ],
)
def test_damaged_samples_are_refused(bench_document: Callable, change: Callable, message: str) -> None:
    document = bench_document()
    change(document["bench"]["gguf-q8_0"]["rows"][0])
    with pytest.raises(ArtifactError, match=message):
        parse_document(document, label="x")


def on_device(document: dict[str, Any], name: str, model: str | None = "A Board 5") -> dict[str, Any]:
    return document | {"device": {"name": name, "model": model}}


def test_one_device_is_known_by_what_it_is_and_not_by_its_address(bench_document: Callable) -> None:
    old, new = on_device(bench_document(), "ssh:me@10.0.0.2"), on_device(bench_document(), "ssh:board")
    assert set(verdicts(compared(old, new)).values()) == {"fine"}


@pytest.mark.parametrize(
    ("name", "model", "said"),
    [
        ("ssh:board", "A Board 4", "`device.model` was `A Board 5`, is `A Board 4`"),
        ("adb:X", "A Board 5", "`device` was `ssh`, is `adb`"),
    ],
)
def test_another_device_is_not_comparable(bench_document: Callable, name: str, model: str, said: str) -> None:
    old, new = on_device(bench_document(), "ssh:board"), on_device(bench_document(), name, model)
    with pytest.raises(NotComparableError, match=said):
        compared(old, new)
    with pytest.raises(NotComparableError, match=said):
        check_plan(parse_document(old, label="old"), BenchSettings(), machine=MACHINE, device=new["device"])


def test_a_device_is_not_this_machine_and_other_cores_are_other_settings(bench_document: Callable) -> None:
    old, new = bench_document(), on_device(bench_document(), "local", None)
    with pytest.raises(NotComparableError, match="`device` was `none: this machine`, is `local`"):
        compared(old, new)
    for document, cores in ((old, [0, 1]), (new, [2, 3])):
        document["bench"]["gguf-q8_0"]["rows"][0]["cores"] = cores
        document["device"] = {"name": "local", "model": None}
    with pytest.raises(NotComparableError, match=r"`cores` was `\[0, 1\]`, is `\[2, 3\]`"):
        compared(old, new)
