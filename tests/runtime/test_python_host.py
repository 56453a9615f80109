"""This project's engines in a device's Python; the device is this machine's own shell."""

from __future__ import annotations

import logging
import re
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ammd.errors import EngineError
from ammd.runtime import bench
from ammd.runtime.artifact_ref import ArtifactRef, EngineKind
from ammd.runtime.bench_document import parse_document
from ammd.runtime.device import Device
from ammd.runtime.device_bench import measure_on_device
from ammd.runtime.device_heat import HeatGate
from ammd.runtime.local_device import LocalConnection
from ammd.runtime.python_host import pack_modules, read_python
from ammd.runtime.settings import BenchSettings

SETTINGS = BenchSettings(
    threads=(1,),
    processes=1,
    max_processes=1,
    retries=0,
    repetitions=2,
    max_repetitions=2,
    max_warmup=1,
    prompt_tokens=8,
    decode_tokens=4,
    cold_loads=0,
    bandwidth=False,
)
ALWAYS = HeatGate(max_celsius=100, cool_down_s=0)


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    monkeypatch.setenv("AMMD_CACHE", str(tmp_path / "cache"))
    with Device(LocalConnection()) as device:
        yield device


def measure(device: Device, *artifacts: ArtifactRef, python: str = sys.executable) -> dict[str, Any]:
    return measure_on_device(device, artifacts, SETTINGS, heat=ALWAYS, python=python)


def test_a_row_has_all_that_a_row_of_this_machine_has(
    device: Device, tiny_onnx: Path, tiny_gguf: Path
) -> None:
    artifacts = [
        ArtifactRef(name="onnx", path=tiny_onnx),
        ArtifactRef(name="gguf", path=tiny_gguf, engine=EngineKind.LLAMA_CPP),
    ]
    document = measure(device, *artifacts)
    here = bench.measure_artifacts(artifacts, SETTINGS)
    for name, record in parse_document(document, label="x").bench.items():
        (row,), known = document["bench"][name]["rows"], here[name]["rows"][0]
        assert set(row) == set(known) | {"cores", "states"}
        assert (row["engine"], row["settings"]) == (known["engine"], known["settings"])
        assert record.file.sha256 == here[name]["file"]["sha256"]
        assert {key for key, value in row.items() if value is None} == {
            key for key, value in known.items() if value is None
        }
        assert row["idle_rss_bytes"] < row["peak_rss_bytes"]
    assert list(document["bench"]) == ["onnx", "gguf"]


def test_onnxruntime_runs_what_onnxruntime_genai_would_where_that_is_missing(
    device: Device, tiny_onnx: Path, few_packages: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    python = few_packages("python-without-genai")
    with caplog.at_level(logging.INFO, logger="ammd"):
        document = measure(device, ArtifactRef(name="x", path=tiny_onnx), python=str(python))
    assert document["bench"]["x"]["engine"].startswith("onnxruntime 1.")
    assert "has no onnxruntime-genai: `x` runs in onnxruntime" in caplog.text


@pytest.mark.parametrize(
    ("engine", "missing", "install"),
    [
        (None, "`onnxruntime` and `tokenizers`", "pip install onnxruntime tokenizers"),
        (EngineKind.ONNX_GENAI, "`onnxruntime-genai`", "pip install onnxruntime-genai"),
    ],
)
def test_packages_that_are_missing_are_named(
    device: Device,
    tiny_onnx: Path,
    few_packages: Callable[..., Path],
    engine: EngineKind | None,
    missing: str,
    install: str,
) -> None:
    python = few_packages("bare-python", names=("numpy",))
    with pytest.raises(EngineError, match=rf"`local` cannot run `x`: its `.*` has no {missing}$") as caught:
        measure(device, ArtifactRef(name="x", path=tiny_onnx, engine=engine), python=str(python))
    assert install in caught.value.hint


def test_a_device_without_python_is_said(device: Device, tiny_onnx: Path) -> None:
    with pytest.raises(EngineError, match=r"`local` has no Python `python4`: .*not found") as caught:
        measure(device, ArtifactRef(name="x", path=tiny_onnx), python="python4")
    assert "`--python` names another" in caught.value.hint


def test_an_old_python_is_said(device: Device, tmp_path: Path) -> None:
    old = tmp_path / "python3.9"
    old.write_text("""#!/bin/sh\necho '{"version": [3, 9, 2], "packages": {}}'\n""")
    old.chmod(0o755)
    with pytest.raises(EngineError, match=r"`.*/python3.9` on `local` is Python 3.9.2, 3.11 is needed"):
        read_python(device, str(old))


def test_home_is_the_devices_own(device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my venv").mkdir()
    (tmp_path / "my venv/python").symlink_to(sys.executable)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_python(device, "~/my venv/python").version == sys.version_info[:3]


def test_a_file_that_cannot_be_opened_is_a_row_that_says_so(
    device: Device, tiny_gguf: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(tiny_gguf.read_bytes()[:1000])
    row = measure(device, ArtifactRef(name="x", path=damaged, engine=EngineKind.LLAMA_CPP))["bench"]["x"]
    assert re.match(r"llama.cpp cannot load `.*damaged.gguf`", row["failure"]["ended"])
    assert row["validity"] == "invalid"


def test_the_same_modules_are_the_same_archive(tmp_path: Path) -> None:
    for name in ("a.zip", "b.zip"):
        pack_modules(tmp_path / name)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    names = set(zipfile.ZipFile(tmp_path / "a.zip").namelist())
    assert {"ammd/__init__.py", "ammd/runtime/child.py", "ammd/runtime/bench_child.py"} <= names
    assert not [name for name in names if not name.endswith(".py") or name.count("/") > 2]
