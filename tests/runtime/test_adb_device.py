"""The stock `adb` client against a stand-in for its server (`adb_stand_in.py`); no phone is involved."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from ammd.errors import EngineError, RecipeError
from ammd.runtime import device_bench
from ammd.runtime.artifact_ref import ArtifactRef
from ammd.runtime.device_tool import Tool
from ammd.runtime.devices import describe_devices, open_device
from ammd.runtime.llama_tools import COMPILER, Arm64, arm64_folder
from ammd.runtime.settings import BenchSettings

pytestmark = pytest.mark.skipif(not shutil.which("adb"), reason="Android's `adb` client is missing")
SERIAL = "ZY22ABCDEF"


def _load_stand_in() -> Any:
    path = Path(__file__).with_name("adb_stand_in.py")
    specification = importlib.util.spec_from_file_location("adb_stand_in", path)
    assert specification and specification.loader
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def phones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Stand-in server with one phone."""
    with _load_stand_in().StandIn(tmp_path / "root", {SERIAL: "device"}) as server:
        monkeypatch.setenv("ADB_SERVER_SOCKET", server.address)
        yield server
        server.shutdown()


def test_scripts_and_files_cross_the_connection(phones: Any, tmp_path: Path) -> None:
    with open_device(f"adb:{SERIAL}") as device:
        ran = device.run('echo "it\'s" there; echo err >&2; exit 3')
        assert (ran.exit_code, ran.stdout, ran.stderr) == (3, "it's there\n", "err\n")
        source = tmp_path / "source"
        source.write_bytes(bytes(range(256)) * 4096)
        device.push(source, f"{device.folder}/it's")
        device.pull(f"{device.folder}/it's", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == source.read_bytes()
    there = phones.root / "data/local/tmp/ammd"
    assert [path.name for path in there.iterdir()] == ["it's"]


def test_the_only_phone_needs_no_name(phones: Any) -> None:
    with open_device("adb:") as device:
        assert device.name == f"adb:{SERIAL}"


def test_of_two_phones_one_has_to_be_named(phones: Any) -> None:
    phones.phones["emulator-5554"] = "device"
    with pytest.raises(RecipeError, match=rf"2 phones are attached .*: `adb:{SERIAL}`, `adb:emulator-5554`"):
        open_device("adb:")


def test_no_phone_is_said(phones: Any) -> None:
    phones.phones.clear()
    with pytest.raises(EngineError, match="no phone is attached"):
        open_device("adb:")
    with pytest.raises(EngineError, match="`adb:other` is not attached") as caught:
        open_device("adb:other")
    assert caught.value.exit_code == 6


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("unauthorized", "has not allowed this computer"),
        ("offline", "is offline"),
        ("no permissions (user in plugdev group)", "may not be opened by this user"),
        ("recovery", "is in the state `recovery`"),
    ],
)
def test_a_phone_that_may_not_be_used_is_said(phones: Any, state: str, said: str) -> None:
    phones.phones[SERIAL] = state
    with pytest.raises(EngineError, match=f"`adb:{SERIAL}` {said}".replace("(", r"\(")):
        open_device("adb:")


def test_phones_are_listed_with_what_keeps_them_from_use(phones: Any) -> None:
    phones.phones["emulator-5554"] = "unauthorized"
    document = describe_devices([])
    assert document["schema"] == "ammd.devices/1"
    local, phone, locked = document["devices"]
    assert (local["name"], phone["name"], locked["name"]) == ("local", f"adb:{SERIAL}", "adb:emulator-5554")
    assert phone["cores"] == local["cores"]  # the stand-in's are this machine's
    assert locked["error"] == "`adb:emulator-5554` has not allowed this computer to debug it"
    with pytest.raises(EngineError, match="has not allowed"):
        describe_devices(["adb:emulator-5554"])


def test_unplugged_in_the_middle_is_said_and_ends_the_script(phones: Any, tmp_path: Path) -> None:
    device = open_device("adb:")
    threading.Thread(target=_unplug, args=(phones, tmp_path / "up")).start()
    with pytest.raises(EngineError, match=f"the connection to `adb:{SERIAL}` was lost"):
        device.run(f"echo up > {tmp_path}/up; cat; echo over > {tmp_path}/over", held=True)
    assert _comes(tmp_path / "over")


def test_no_space_left_is_said(phones: Any, tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    (tmp_path / "source").write_bytes(b"x" * 10_000)
    with open_device("adb:") as device:
        part = phones.root / "data/local/tmp/ammd/model.part"
        _ = device.folder
        part.symlink_to("/dev/full")
        with pytest.raises(EngineError, match=f"`adb:{SERIAL}` has no space left: copying `source`"):
            device.push(tmp_path / "source", f"{device.folder}/model")
    assert not list(part.parent.iterdir())


def _phone(phones: Any, bench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the stand-in look like an arm64 phone, with a script as `llama-bench`."""
    phones.tool("uname", "case $1 in -m) echo aarch64 ;; *) echo Linux 6.1 ;; esac")
    phones.tool("getprop", "echo '[ro.build.version.release]: [14]'; echo '[ro.soc.model]: [Stand-in]'")
    phones.tool(
        "dumpsys", '[ "$1" != battery ] || printf "level: 71\n  temperature: 301\n  USB powered: true\n"'
    )
    tool = Tool(isa="armv8-a", source="a script", program=bench, libraries=())
    monkeypatch.setattr(device_bench, "choose_tool", lambda facts, device: tool)


def _script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def _measure(model: Path, **changes: Any) -> dict[str, Any]:
    model.write_bytes(b"GGUF" + bytes(100))
    settings = BenchSettings(**{"threads": (1,), "processes": 1, **changes})
    heat = device_bench.HeatGate(max_celsius=37, cool_down_s=0)
    with open_device("adb:") as device:
        return device_bench.measure_on_device(
            device, [ArtifactRef(name="gguf-q4_0", path=model)], settings, heat=heat
        )


def test_a_benchmark_comes_back_with_the_phones_facts(
    phones: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = {"n_batch": 512, "n_ubatch": 512, "n_prompt": 128, "flash_attn": 1, "load_mode": "none"}
    shared |= {"repack": True, "type_k": "f16", "test_time": "2026", "samples_ts": [7.0]}
    rows = [json.dumps(shared | {"n_gen": tokens}) for tokens in (0, 64)]
    _phone(phones, _script(tmp_path / "llama-bench", f"cat <<'END'\n{rows[0]}\n{rows[1]}\nEND"), monkeypatch)
    document = _measure(tmp_path / "m-q4_0.gguf")
    device, row = document["device"], document["bench"]["gguf-q4_0"]
    assert (device["name"], device["system"], device["soc"]) == (f"adb:{SERIAL}", "Android 14", "Stand-in")
    assert row["decode_tokens_per_s"] == pytest.approx(7.0)
    assert [row["states"][0][when]["battery_celsius"] for when in ("before", "after")] == [30.1, 30.1]
    there = {path.name for path in (phones.root / "data/local/tmp/ammd").rglob("*") if path.is_file()}
    assert there == {
        "llama-bench",
        "device_agent.sh",
        f"{document['bench']['gguf-q4_0']['file']['sha256'][:12]}-m-q4_0.gguf",
    }


def test_a_warm_phone_is_not_measured(phones: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _phone(phones, _script(tmp_path / "llama-bench", f"touch {tmp_path}/ran"), monkeypatch)
    phones.tool("dumpsys", '[ "$1" != battery ] || printf "level: 71\n  temperature: 401\n"')
    with pytest.raises(EngineError, match="still too warm after 0 s: the battery has 40"):
        _measure(tmp_path / "m-q4_0.gguf")
    assert not (tmp_path / "ran").exists()


def test_unplugged_while_measuring_ends_the_process(
    phones: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = f"echo $$ > {tmp_path}/pid.part; mv {tmp_path}/pid.part {tmp_path}/pid; exec sleep 1000"
    _phone(phones, _script(tmp_path / "llama-bench", script), monkeypatch)
    threading.Thread(target=_unplug, args=(phones, tmp_path / "pid")).start()
    with pytest.raises(EngineError, match=f"the connection to `adb:{SERIAL}` was lost"):
        _measure(tmp_path / "m-q4_0.gguf")
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(int((tmp_path / "pid").read_text())).wait(10)  # TimeoutExpired if it went on


def test_the_low_memory_killer_is_named(phones: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _phone(phones, _script(tmp_path / "llama-bench", "sleep 0.3; kill -KILL $$"), monkeypatch)
    phones.tool(
        "logcat", "echo 'I lmkd: Kill llama-bench (4711), uid 2000, oom_score_adj 0 to free 190000kB'"
    )
    row = _measure(tmp_path / "m-q4_0.gguf")["bench"]["gguf-q4_0"]
    assert "was killed by the low-memory killer" in row["failure"]["ended"]


@pytest.mark.real
@pytest.mark.skipif(
    not all(shutil.which(name) for name in (COMPILER, "cmake", "qemu-aarch64")),
    reason="cross compiler or emulator missing",
)
def test_the_cross_built_tool_runs_on_an_emulated_phone(
    phones: Any, tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AMMD_CACHE", raising=False)
    bench = arm64_folder(Arm64.DOTPROD) / "llama-bench"
    _phone(phones, bench, monkeypatch)
    phones.tool("taskset", 'shift; exec qemu-aarch64 "$@"')
    settings = BenchSettings(threads=(1,), processes=1, repetitions=1, prompt_tokens=8, decode_tokens=4)
    heat = device_bench.HeatGate(max_celsius=37, cool_down_s=0)
    with open_device("adb:") as device:
        document = device_bench.measure_on_device(
            device, [ArtifactRef(name="tiny", path=tiny_gguf)], settings, heat=heat
        )
    prefill, decode = document["bench"]["tiny"]["llama_bench"][0]
    assert (prefill["n_prompt"], decode["n_gen"]) == (8, 4)
    assert document["bench"]["tiny"]["settings"] == {
        "batch_tokens": 512,
        "micro_batch_tokens": 512,
        "flash_attention": True,
        "memory_map": False,
        "weight_repacking": True,
        "kv_cache_type": "f16",
    }


@pytest.mark.parametrize("target", ["adb:a b", "adb:-s", "adb:x;y"])
def test_malformed_serials_are_refused(target: str) -> None:
    with pytest.raises(RecipeError, match="is malformed"):
        open_device(target)


def _unplug(phones: Any, sign: Path) -> None:
    assert _comes(sign)
    phones.unplug(SERIAL)


def _comes(path: Path) -> bool:
    for _ in range(200):
        if path.exists() and path.stat().st_size:
            return True
        time.sleep(0.05)
    return False
