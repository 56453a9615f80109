"""llama.cpp's own tools, built once from the tree that the installed llama-cpp-python was built from."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ammd.errors import EngineError
from ammd.fetch import user_cache
from ammd.llama_source import source_tree
from ammd.machine import available_cores, library_versions


def build_tool(target: str) -> Path:
    """Return a tool such as `llama-bench`, with the flags of the wheel, from the user cache or built into it."""
    tree = source_tree()
    key = hashlib.sha256(f"{tree}\0{library_versions()['llama-cpp-python']}".encode()).hexdigest()[:12]
    folder = user_cache() / f"llama-bench-{key}"
    binary = folder / "bin" / target
    if binary.is_file():
        return binary
    cmake = shutil.which("cmake")
    if cmake is None:
        raise EngineError(f"{target} cannot be built: no cmake", hint="install cmake and a C++ compiler")
    print(f"building {target}, a few minutes ...", file=sys.stderr)
    off = ("TESTS", "EXAMPLES", "SERVER", "APP")  # the wheel's flags are llama.cpp's defaults in Release
    flags = ["-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=ON", "-DLLAMA_OPENSSL=OFF"]
    flags += ["-DLLAMA_USE_PREBUILT_UI=OFF", *(f"-DLLAMA_BUILD_{part}=OFF" for part in off)]
    run([cmake, "-S", tree, "-B", folder, *flags])
    run([cmake, "--build", folder, "--target", target, "-j", str(available_cores())])
    return binary


def run(command: Sequence[str | os.PathLike[str]]) -> str:
    """Return a command's standard output; its last words become the error when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = "\n".join((done.stdout + done.stderr).strip().splitlines()[-8:])
        raise EngineError(f"`{Path(command[0]).name}` ended with {done.returncode}:\n{last}")
    return done.stdout
