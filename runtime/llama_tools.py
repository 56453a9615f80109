"""llama.cpp's own tools, built from the tree that the installed llama-cpp-python was built from.

Two kinds of build, both kept in the user cache:

- native, with the flags of the wheel, for this machine and those like it;
- arm64, static, by a cross compiler (Debian's `g++-aarch64-linux-gnu`), so that it runs on boards and in an Android
  shell. A static build picks no code at run time, so there are two: one that every arm64 processor runs, and one for
  those with the dot-product instructions, which quantized weights are multiplied with.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import subprocess
from collections.abc import Sequence
from enum import Enum
from pathlib import Path

from ammd.artifact import (
    Manifest,
    is_published,
    list_files,
    load_manifest,
    publish,
    remove_partial,
    staging_folder,
)
from ammd.errors import ArtifactError, EngineError
from ammd.fetch import user_cache
from ammd.llama_source import source_tree
from ammd.machine import available_cores, library_versions

BENCH = "llama-bench"
COMPILER = "aarch64-linux-gnu-g++"

_LOGGER = logging.getLogger(__name__)
_LAST_LINES = 8
_PARTS = ("TESTS", "EXAMPLES", "SERVER", "APP")
_COMMON = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    *(f"-DLLAMA_BUILD_{part}=OFF" for part in _PARTS),
)
_ARM64 = (
    *_COMMON,
    "-DCMAKE_SYSTEM_NAME=Linux",
    "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
    "-DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc",
    f"-DCMAKE_CXX_COMPILER={COMPILER}",
    "-DCMAKE_EXE_LINKER_FLAGS=-static -s",
    "-DBUILD_SHARED_LIBS=OFF",
    "-DGGML_NATIVE=OFF",
    "-DGGML_OPENMP=OFF",  # a static libgomp would bring threads of its own beside llama.cpp's
    "-DGGML_CCACHE=OFF",
    "-DLLAMA_SUBPROCESS=OFF",
    "-DLLAMA_ALL_WARNINGS=OFF",
    "-DGGML_ALL_WARNINGS=OFF",
)
_LIBRARIES = ("src/libllama.a", "ggml/src/libggml.a", "ggml/src/libggml-base.a", "ggml/src/libggml-cpu.a")


class Arm64(Enum):
    """An arm64 build, by what its compiler was allowed to use."""

    BASELINE = "armv8-a"
    DOTPROD = "armv8.2-a+dotprod"


def native_tool(target: str) -> Path:
    """Return a tool such as `llama-bench` for this machine, from the cache or built into it.

    Raises:
        EngineError: There is no cmake, or the build fails.
        ArtifactError: The source cannot be had.
    """
    tree = source_tree()
    key = hashlib.sha256(f"{tree}\0{library_versions()['llama-cpp-python']}".encode()).hexdigest()[:12]
    folder = user_cache() / f"llama-bench-{key}"
    binary = folder / "bin" / target
    if not binary.is_file():
        cmake = _program("cmake", "install cmake and a C++ compiler")
        _LOGGER.info("building %s, a few minutes ...", target)
        run_command([cmake, "-S", tree, "-B", folder, *_COMMON, "-DBUILD_SHARED_LIBS=ON"])
        run_command([cmake, "--build", folder, "--target", target, "-j", str(available_cores())])
    return binary


def arm64_folder(build: Arm64) -> Path:
    """Return a folder with `llama-bench` and llama.cpp's static libraries for arm64, checked on each call.

    The first call builds both kinds one after the other, which share all but the arithmetic.

    Raises:
        EngineError: There is no cmake or cross compiler, or the build fails.
        ArtifactError: The source cannot be had.
    """
    from filelock import FileLock

    tree = source_tree()
    cmake = _program("cmake", "install cmake")
    compiler = _program(COMPILER, "install Debian's `g++-aarch64-linux-gnu`")
    version = run_command([compiler, "-dumpfullversion"]).strip()
    key = hashlib.sha256("\0".join((str(tree), version, *_ARM64)).encode()).hexdigest()
    target = user_cache() / f"llama.cpp-arm64-{key[:12]}"
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_name(target.name + ".lock")):
        if not _is_whole(target):
            remove_partial(target)
            _build_arm64(tree, target, cmake=cmake, key=key)
    return target / build.value


def _is_whole(folder: Path) -> bool:
    if not is_published(folder):
        return False
    try:
        load_manifest(folder)
    except ArtifactError as exc:
        _LOGGER.warning("the arm64 build in the cache is damaged (%s); building it again", exc)
        return False
    return True


def _build_arm64(tree: Path, target: Path, *, cmake: str, key: str) -> None:
    _LOGGER.info("building %s for arm64, about ten minutes on two cores ...", BENCH)
    desk = target.with_name(target.name + ".build")  # stays when interrupted: the next call goes on there
    with staging_folder(target) as staging:
        for build in Arm64:
            run_command([cmake, "-S", tree, "-B", desk, *_ARM64, f"-DGGML_CPU_ARM_ARCH={build.value}"])
            run_command([cmake, "--build", desk, "--target", BENCH, "-j", str(available_cores())])
            folder = staging / build.value
            folder.mkdir()
            for path in (f"bin/{BENCH}", *_LIBRARIES):
                shutil.copy2(desk / path, folder)
        publish(staging, target, Manifest(stage="cross-build", key=key, files=list_files(staging)))
    shutil.rmtree(desk)


def _program(name: str, hint: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise EngineError(f"llama.cpp's tools cannot be built: no `{name}`", hint=hint)
    return found


def run_command(command: Sequence[str | os.PathLike[str]]) -> str:
    """Return a command's standard output.

    Raises:
        EngineError: It failed; the message has its last words.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = "\n".join((done.stdout + done.stderr).strip().splitlines()[-_LAST_LINES:])
        raise EngineError(f"`{Path(command[0]).name}` ended with {done.returncode}:\n{last}")
    return done.stdout
