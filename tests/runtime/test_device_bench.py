"""Measuring on a device, with a stand-in for `llama-bench` on this machine's own shell."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from ammd.errors import EngineError, RecipeError
from ammd.runtime import device_bench, device_tool
from ammd.runtime.artifact_ref import ArtifactRef
from ammd.runtime.bench_document import parse_document
from ammd.runtime.device import Device, Ran
from ammd.runtime.device_agent import Watched, fastest_cores, read_watched
from ammd.runtime.device_bench import measure_on_device
from ammd.runtime.device_facts import Core, DeviceFacts, State
from ammd.runtime.device_heat import HeatGate, wait_until_cool
from ammd.runtime.device_tool import Tool, bring, choose_tool
from ammd.runtime.llama_bench_host import parse_rows
from ammd.runtime.llama_bench_rows import bench_rows
from ammd.runtime.llama_options import KvType
from ammd.runtime.llama_tools import Arm64
from ammd.runtime.local_device import LocalConnection
from ammd.runtime.settings import BenchSettings, LlamaSettings

ALWAYS = HeatGate(max_celsius=100, cool_down_s=0)
FACTS = {
    "flash_attn": 1,
    "n_batch": 512,
    "n_ubatch": 512,
    "load_mode": "none",
    "repack": True,
    "type_k": "f16",
    "test_time": "2026",
}
PREFILL = json.dumps(FACTS | {"n_prompt": 8, "n_gen": 0, "samples_ts": [100.0, 110.0]})
DECODE = json.dumps(FACTS | {"n_prompt": 0, "n_gen": 4, "samples_ts": [20.0, 30.0]})
PRINTS = f"cat <<'END'\n{PREFILL}\n{DECODE}\nEND"
SETTINGS = BenchSettings(
    threads=(1,), processes=2, max_processes=2, repetitions=2, prompt_tokens=8, decode_tokens=4
)
COOL = State(
    battery_percent=80, battery_celsius=30.0, plugged=False, thermal_status=0, temperatures_celsius={}
)


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    monkeypatch.setenv("AMMD_CACHE", str(tmp_path / "cache"))
    with Device(LocalConnection()) as device:
        yield device


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let a script be `llama-bench`."""

    def stand_in(script: str) -> None:
        path = tmp_path / "llama-bench"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        tool = Tool(isa="stand-in", source="a script", program=path, libraries=())
        monkeypatch.setattr(device_bench, "choose_tool", lambda facts, device: tool)

    return stand_in


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "a model's-q4_0.gguf"
    path.write_bytes(b"GGUF" + bytes(1000))
    return path


def measure(device: Device, model: Path, settings: BenchSettings = SETTINGS) -> dict[str, Any]:
    artifacts = [ArtifactRef(name="gguf-q4_0", path=model)]
    return measure_on_device(device, artifacts, settings, heat=ALWAYS)


def test_a_row_has_medians_memory_and_the_settings_in_effect(
    device: Device, model: Path, stand_in: Callable[[str], None]
) -> None:
    stand_in(f"{PRINTS}\nsleep 0.3")
    document = measure(device, model)
    (row,) = document["bench"]["gguf-q4_0"]["rows"]
    assert document["schema"] == "ammd.bench/2"
    assert document["device"]["name"] == "local"
    rates = [row["prefill_tokens_per_s"], row["decode_tokens_per_s"]]
    assert rates == pytest.approx([105.0, 25.0])
    assert [row[f"decode_tokens_per_s_{end}"] for end in ("min", "max")] == pytest.approx([20.0, 30.0])
    assert [row[name] for name in ("ttft_s", "token_p50_s", "token_p99_s", "load_s")] == [None] * 4
    assert row["processes"] == len(row["samples"]) == len(row["states"]) == 2
    assert row["engine"] == "llama.cpp (llama-bench for stand-in, a script)"
    assert row["settings"]["flash_attention"] is True
    assert min(row["memory_samples"]) >= 2
    assert 100_000 < row["rss_anon_bytes"] + row["rss_file_bytes"] <= 2 * row["peak_rss_bytes"] < 100_000_000
    assert document["bench"]["gguf-q4_0"]["file"]["bytes"] == 1004


def test_what_matters_is_stated_and_the_process_is_pinned(
    device: Device, model: Path, stand_in: Callable[[str], None], tmp_path: Path
) -> None:
    stand_in(
        f'printf "%s|" "$@" > {tmp_path}/seen\ngrep Cpus_allowed_list /proc/self/status > {tmp_path}/cores\n{PRINTS}'
    )
    llama = LlamaSettings(batch=256, kv_type=KvType.Q8_0)
    document = measure(device, model, SETTINGS.model_copy(update={"llama": llama}))
    words = (tmp_path / "seen").read_text().split("|")[:-1]
    options = dict(zip(words[::2], words[1::2], strict=True))
    assert options["-m"].endswith("-a model's-q4_0.gguf")
    assert Path(options["-m"]).read_bytes() == model.read_bytes()
    stated = {"-p": "8", "-n": "4", "-r": "2", "-t": "1", "-b": "256", "-ub": "256", "-fa": "1", "-ngl": "0"}
    stated |= {"-ctk": "q8_0", "-ctv": "q8_0", "-lm": "none"}
    assert {name: options[name] for name in stated} == stated
    (core,) = document["bench"]["gguf-q4_0"]["cores"]
    assert (tmp_path / "cores").read_text().split()[1] == str(core)


def test_no_warm_up_is_passed_on(
    device: Device, model: Path, stand_in: Callable[[str], None], tmp_path: Path
) -> None:
    stand_in(f'echo "$@" > {tmp_path}/seen\n{PRINTS}')
    document = measure(device, model, SETTINGS.model_copy(update={"warmup": 0}))
    assert "--no-warmup" in (tmp_path / "seen").read_text()
    assert document["bench"]["gguf-q4_0"]["warmup"] == 0


def test_a_file_that_is_there_is_not_sent_again_and_an_altered_one_is(device: Device, model: Path) -> None:
    there = f"{device.folder}/models/m"
    assert bring(device, model, there)
    assert not bring(device, model, there)
    Path(there).write_bytes(b"altered")
    assert bring(device, model, there)
    assert Path(there).read_bytes() == model.read_bytes()


def test_a_full_device_is_told_before_the_copy(
    device: Device, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = device.run
    said = "Filesystem 1024-blocks Used Available Capacity Mounted on\n/dev/x 100 90 10 90% /\n"
    full = Ran(exit_code=0, stdout=said, stderr="")
    monkeypatch.setattr(
        device, "run", lambda script, **options: full if "df" in script else run(script, **options)
    )
    with pytest.raises(EngineError, match=r"`local` has no space left: 0 MiB free"):
        bring(device, model, f"{device.folder}/models/m")


def test_a_killed_process_is_said(device: Device, model: Path, stand_in: Callable[[str], None]) -> None:
    stand_in("sleep 0.3; kill -KILL $$")
    (row,) = measure(device, model)["bench"]["gguf-q4_0"]["rows"]
    assert re.fullmatch(
        r"`llama-bench` on `local` was killed \(SIGKILL\) at \d+ MiB", row["failure"]["ended"]
    )
    assert (row["failure"]["signal"], row["validity"]) == ("SIGKILL", "invalid")


def test_the_low_memory_killer_is_named() -> None:
    log = "I lowmemorykiller: Kill 'llama-bench' (4711), uid 2000, oom_score_adj -1000"
    seen = "@@ammd code=137 end= samples=9 VmHWM=2097152 RssAnon=1 RssFile=1 VmSwap=0 Pss=1\n"
    with pytest.raises(EngineError, match=r"on `adb:x` was killed by the low-memory killer at 2048 MiB"):
        read_watched(
            Ran(exit_code=137, stdout=seen, stderr=f"warning\n{log}\n"), label="llama-bench", device="adb:x"
        )


@pytest.mark.parametrize(
    ("exit_code", "stderr", "said"),
    [
        (1, "loading\nerror: failed to load model\n", "ended with 1: error: failed to load model"),
        (1, "", "ended with 1: it said nothing"),
        (255, "no\n", "ended with 255: no"),
        (132, "Illegal instruction\n", "met an instruction that it does not have"),
        (127, "agent.sh: 12: taskset: not found\n", "`taskset` is missing on `d`"),
    ],
)
def test_a_failure_is_said_in_one_line(exit_code: int, stderr: str, said: str) -> None:
    with pytest.raises(EngineError, match=said) as caught:
        read_watched(Ran(exit_code=exit_code, stdout="", stderr=stderr), label="llama-bench", device="d")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("out", ["", "{}", '{"n_gen": 0}', PREFILL, "{not json"])
def test_other_output_is_refused(out: str) -> None:
    with pytest.raises(EngineError, match="printed something else"):
        parse_rows(Watched(stdout=out, memory={}, samples=0), device="d")


def test_a_checkpoint_is_refused(device: Device, tiny_checkpoint: Path) -> None:
    with pytest.raises(EngineError, match="is a checkpoint, and devices run exported files"):
        measure(device, tiny_checkpoint)


@pytest.mark.parametrize(("name", "value"), [("depths", (0, 64)), ("warmup", 2)])
def test_what_llama_bench_does_not_do_is_refused(device: Device, model: Path, name: str, value: Any) -> None:
    with pytest.raises(RecipeError, match=rf"`{name} = .*`: `llama-bench`") as caught:
        measure(device, model, SETTINGS.model_copy(update={name: value}))
    assert "--engine llama.cpp" in caught.value.hint


def test_rows_for_other_programs_say_null_and_an_empty_context(
    device: Device, model: Path, stand_in: Callable[[str], None]
) -> None:
    stand_in(PRINTS)
    prefill, decode = bench_rows(parse_document(measure(device, model), label="x"), proofs={})
    assert (prefill["test"], decode["test"]) == ("pp8", "tg4")
    assert (decode["n_depth"], decode["token_p50_s"], prefill["ttft_s"]) == (0, None, None)
    assert decode["samples_ts"] == pytest.approx([20.0, 30.0] * 2)


def test_ctrl_c_ends_what_runs_on_the_device(model: Path, tmp_path: Path) -> None:
    script = tmp_path / "llama-bench"
    script.write_text(
        f"#!/bin/sh\necho $$ > {tmp_path}/pid.part; mv {tmp_path}/pid.part {tmp_path}/pid\nexec sleep 1000\n"
    )
    code = (
        "import sys, pathlib, signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # whatever started the tests may ignore it
        "from ammd.runtime import device_bench, device_tool, settings, devices\n"
        "tool = device_tool.Tool(isa='x', source='x', program=pathlib.Path(sys.argv[1]), libraries=())\n"
        "device_bench.choose_tool = lambda facts, device: tool\n"
        "gate = device_bench.HeatGate(max_celsius=1, cool_down_s=1)\n"
        "with devices.open_device('local') as device:\n"
        "  files = [device_bench.ArtifactRef(name='m', path=pathlib.Path(sys.argv[2]))]\n"
        "  device_bench.measure_on_device(device, files, settings.BenchSettings(), heat=gate)\n"
    )
    environment = {**os.environ, "AMMD_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-P", "-c", code, script, model]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    for _ in range(400):
        if (tmp_path / "pid").exists():
            break
        time.sleep(0.05)
    child = psutil.Process(int((tmp_path / "pid").read_text()))
    process.send_signal(signal.SIGINT)
    assert process.wait(30) != 0
    child.wait(10)  # TimeoutExpired if it went on


def facts(machine: str, *features: str, cores: tuple[Core, ...] = ()) -> DeviceFacts:
    return DeviceFacts(
        model=None,
        soc=None,
        machine=machine,
        cores=cores,
        features=features,
        ram_bytes=None,
        ram_available_bytes=None,
        system=None,
        kernel="",
        state=COOL,
    )


@pytest.mark.parametrize(
    ("features", "build"),
    [
        (("asimd",), Arm64.BASELINE),
        (("asimd", "asimddp"), Arm64.DOTPROD),
        (("asimddp", "sve"), Arm64.DOTPROD),
    ],
)
def test_the_build_follows_the_instructions(
    features: tuple[str, ...], build: Arm64, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(device_tool, "arm64_folder", lambda build: tmp_path / build.value)
    monkeypatch.setattr(device_tool, "source_tree", lambda: tmp_path)
    tool = choose_tool(facts("aarch64", *features), device="d")
    assert tool.program == tmp_path / build.value / "llama-bench"
    assert tool.isa == build.value


def test_an_x86_host_gets_the_native_build_with_its_libraries(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names = ("llama-bench", "libllama-bench-impl.so", "libllama.so", "libllama.so.0", "libllama.so.0.5.0")
    for name in names:
        (tmp_path / name).touch()
    monkeypatch.setattr(device_tool, "cpu_flags", lambda: frozenset({"avx2", "fma", "constant_tsc"}))
    monkeypatch.setattr(device_tool, "native_tool", lambda target: tmp_path / target)
    monkeypatch.setattr(device_tool, "source_tree", lambda: tmp_path)
    tool = choose_tool(facts("x86_64", "fma", "avx2", "avx512f"), device="d")
    assert tool.program == tmp_path / "llama-bench"
    assert {path.name for path in tool.libraries} == {"libllama.so.0", "libllama-bench-impl.so"}


def test_an_x86_host_without_an_instruction_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_tool, "cpu_flags", lambda: frozenset({"avx2", "fma", "tsc"}))
    with pytest.raises(EngineError, match="`d` lacks `avx2`, for which"):
        choose_tool(facts("x86_64", "fma"), device="d")


def test_other_processors_are_refused() -> None:
    with pytest.raises(EngineError, match="`d` is a `armv7l`"):
        choose_tool(facts("armv7l"), device="d")


def test_few_threads_go_to_the_fastest_cores() -> None:
    cores = tuple(Core(number=number, max_hz=hz, part=None) for number, hz in enumerate((5, 24, 24, 29)))
    found = facts("aarch64", cores=cores)
    assert found.big_cores == (1, 2, 3)
    assert fastest_cores(found, 1) == (3,)
    assert fastest_cores(found, 2) == (1, 3)


def state(celsius: float | None, *, status: int | None = 0) -> State:
    return State(
        battery_percent=80,
        battery_celsius=celsius,
        plugged=False,
        thermal_status=status,
        temperatures_celsius={},
    )


def test_a_warm_device_is_waited_for() -> None:
    states = iter([state(41.0), state(36.0, status=2), state(36.0)])
    slept: list[float] = []
    gate = HeatGate(max_celsius=37, cool_down_s=60)
    found = wait_until_cool(lambda: next(states), gate, device="d", sleep=slept.append)
    assert (found.battery_celsius, slept) == (36.0, [10, 10])


def test_a_device_that_stays_warm_is_given_up() -> None:
    slept: list[float] = []
    with pytest.raises(
        EngineError, match=r"`d` is still too warm after 25 s: the battery has 41.0 °C, the limit is 37.0"
    ):
        gate = HeatGate(max_celsius=37, cool_down_s=25)
        wait_until_cool(lambda: state(41.0), gate, device="d", sleep=slept.append)
    assert slept == [10, 10, 5]


def test_a_device_that_tells_no_temperature_is_not_waited_for() -> None:
    gate = HeatGate(max_celsius=1, cool_down_s=10)
    wait_until_cool(lambda: state(None, status=None), gate, device="d", sleep=lambda _: pytest.fail("slept"))
