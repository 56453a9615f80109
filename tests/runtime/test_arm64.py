"""Files on arm64, emulated by qemu: same token ids, distributions within a file's own limits. Never speed."""

from __future__ import annotations

import importlib.util
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from ammd.runtime.engine import open_engine
from ammd.runtime.limits import KL_LIMITS
from ammd.runtime.llama_tools import BENCH, COMPILER, Arm64, arm64_folder, run_command

_MISSING = [name for name in (COMPILER, "cmake", "qemu-aarch64") if not shutil.which(name)]
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(bool(_MISSING), reason=f"cross compiler or emulator missing: {', '.join(_MISSING)}"),
]
BUILDS = pytest.mark.parametrize("build", list(Arm64), ids=lambda build: build.value)


@pytest.fixture(scope="module")
def arm64() -> ModuleType:
    """benchmarks/arm64.py."""
    path = Path(__file__).parents[2] / "benchmarks/arm64.py"
    specification = importlib.util.spec_from_file_location("arm64", path)
    assert specification and specification.loader
    module = importlib.util.module_from_spec(specification)
    sys.modules["arm64"] = module  # where dataclasses look their types up
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tiny_files(
    build_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A random model with uneven distributions, by scheme."""
    from ammd.export.quantize_gguf import quantize_gguf
    from ammd.export.to_gguf import write_gguf

    folder = tmp_path_factory.mktemp("arm64")
    sizes = {"layers": 2, "hidden_size": 256, "intermediate_size": 512}
    checkpoint = build_checkpoint(folder / "checkpoint", initializer_range=0.1, **sizes)
    source = folder / "student-f16.gguf"
    write_gguf(checkpoint, source, name="tiny")
    files = {"gguf-f16": source}
    for type_name in ("q8_0", "q4_0", "q4_k_m"):
        files[f"gguf-{type_name}"] = target = folder / f"student-{type_name}.gguf"
        quantize_gguf(source, target, type_name=type_name.upper())
    return files


@BUILDS
def test_the_tool_is_static_and_of_the_right_processor(build: Arm64) -> None:
    head = (arm64_folder(build) / BENCH).read_bytes()[:20]
    assert head[:4] == b"\x7fELF"
    assert int.from_bytes(head[18:20], "little") == 183  # EM_AARCH64
    said = (
        run_command(["file", "-b", arm64_folder(build) / BENCH])
        if shutil.which("file")
        else "statically linked"
    )
    assert "statically linked" in said


def test_the_oldest_processor_runs_the_baseline_and_not_the_other(tiny_files: dict[str, Path]) -> None:
    arguments = ["-m", tiny_files["gguf-q4_0"], "-p", "4", "-n", "1", "-r", "1", "-t", "1", "--no-warmup"]
    ended = {
        build: subprocess.run(
            ["qemu-aarch64", "-cpu", "cortex-a53", arm64_folder(build) / BENCH, *arguments],
            capture_output=True,
            check=False,
        ).returncode
        for build in Arm64
    }
    assert ended == {Arm64.BASELINE: 0, Arm64.DOTPROD: -signal.SIGILL}


@pytest.fixture(scope="module")
def readers(arm64: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[Arm64, Path]:
    """The program that computes logits, by build."""
    folder = tmp_path_factory.mktemp("readers")
    return {build: arm64.build_reader(build, folder) for build in Arm64}


@BUILDS
@pytest.mark.parametrize("scheme", ["gguf-f16", "gguf-q8_0", "gguf-q4_0", "gguf-q4_k_m"])
def test_a_file_is_the_same_model_there(
    arm64: ModuleType, readers: dict[Arm64, Path], tiny_files: dict[str, Path], scheme: str, build: Arm64
) -> None:
    with open_engine(tiny_files[scheme], threads=1, context_tokens=512) as engine:
        sizes = {"tokens": 256, "greedy_tokens": 16}
        found = arm64.compare(engine, tiny_files[scheme], readers[build], isa=build.value, **sizes)
    assert found.same_token_ids
    assert found.positions == 256
    assert found.kl_nats < KL_LIMITS[scheme]
    assert [parting for parting in (*found.apart, *found.partings) if not parting.is_near_tie] == []


@pytest.fixture(scope="module")
def t5_files(unigram_t5: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A random encoder-decoder, by scheme."""
    from ammd.export.quantize_gguf import quantize_gguf
    from ammd.export.to_gguf import write_gguf

    folder = tmp_path_factory.mktemp("t5")
    files = {f"gguf-{kind}": folder / f"student-{kind}.gguf" for kind in ("f16", "q8_0")}
    write_gguf(unigram_t5, files["gguf-f16"], name="tiny")
    quantize_gguf(files["gguf-f16"], files["gguf-q8_0"], type_name="Q8_0")
    return files


@BUILDS
@pytest.mark.parametrize("scheme", ["gguf-f16", "gguf-q8_0"])
def test_an_encoder_decoder_is_the_same_model_there(
    arm64: ModuleType, readers: dict[Arm64, Path], t5_files: dict[str, Path], scheme: str, build: Arm64
) -> None:
    with open_engine(t5_files[scheme], threads=1, context_tokens=256) as engine:
        sizes = {"tokens": 128, "greedy_tokens": 16}
        found = arm64.compare(engine, t5_files[scheme], readers[build], isa=build.value, **sizes)
    assert found.same_token_ids
    assert found.positions == 128
    assert found.kl_nats < KL_LIMITS[scheme]
    assert [parting for parting in (*found.apart, *found.partings) if not parting.is_near_tie] == []


@BUILDS
def test_a_real_model_is_the_same_there(
    arm64: ModuleType, readers: dict[Arm64, Path], packaged_gguf: Path, build: Arm64
) -> None:
    with open_engine(packaged_gguf, threads=1, context_tokens=512) as engine:
        found = arm64.compare(
            engine, packaged_gguf, readers[build], isa=build.value, tokens=12, greedy_tokens=0
        )
    assert found.same_token_ids
    assert found.kl_nats < KL_LIMITS["gguf-q8_0"]  # the same weights: what differs is how they are multiplied
    assert [parting for parting in found.apart if not parting.is_near_tie] == []


@BUILDS
def test_flan_t5_small_is_the_same_there(
    arm64: ModuleType,
    readers: dict[Arm64, Path],
    flan_t5_small: Path,
    tmp_path: Path,
    build: Arm64,
) -> None:
    from ammd.export.to_gguf import write_gguf

    path = tmp_path / "student-f16.gguf"
    write_gguf(flan_t5_small, path, name="flan-t5-small")
    with open_engine(path, threads=1, context_tokens=64) as engine:
        found = arm64.compare(engine, path, readers[build], isa=build.value, tokens=12, greedy_tokens=8)
    assert found.same_token_ids
    assert found.kl_nats < KL_LIMITS["gguf-f16"]
    assert [parting for parting in (*found.apart, *found.partings) if not parting.is_near_tie] == []


def test_another_model_is_not_the_same(
    arm64: ModuleType, readers: dict[Arm64, Path], tiny_files: dict[str, Path]
) -> None:
    program = readers[Arm64.BASELINE]
    with open_engine(tiny_files["gguf-f16"], threads=1, context_tokens=512) as engine:
        found = arm64.compare(
            engine, tiny_files["gguf-q4_0"], program, isa="armv8-a", tokens=64, greedy_tokens=0
        )
    assert found.kl_nats > KL_LIMITS["gguf-f16"]
