"""llama.cpp's source tree: the converter that no wheel ships, and the code that `llama-bench` is built from.

It is taken from the source archive of the installed llama-cpp-python, so that files are converted by the
same release that later runs them. `LLAMA_CPP_DIR` names another tree.
"""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path

from .errors import ArtifactError, FetchError
from .fetch import LLAMA_CPP_SOURCES, fetch_unpacked

TREE_VARIABLE = "LLAMA_CPP_DIR"
CONVERTER = "convert_hf_to_gguf.py"

_NEEDED = (CONVERTER, "conversion/base.py", "gguf-py/gguf/__init__.py")
_ROOT = "vendor/llama.cpp/"
# Two thirds of the archive: sample vocabularies and models, documents, pictures. Neither converter nor build
# reads them.
_LEFT_OUT = ("models/", "docs/", "media/", "benches/", "tests/", ".github/", ".devops/")


def source_tree(*, suffix: str = "") -> Path:
    """Return the root of a llama.cpp source tree with its converter, its gguf-py and its C++ code.

    Args:
        suffix: Of the files that will be used: of the pinned source, those alone are checked. All take ten times as
            long as the converter's own.

    Raises:
        ArtifactError: `LLAMA_CPP_DIR` is set, but no tree with the converter lies there.
        FetchError: No source archive is known for the installed version, or it cannot be fetched.
    """
    configured = os.environ.get(TREE_VARIABLE)
    if configured:
        return _check_tree(Path(configured).expanduser().absolute())
    try:
        version = importlib.metadata.version("llama-cpp-python")
    except importlib.metadata.PackageNotFoundError as exc:
        raise FetchError(
            "llama-cpp-python is not installed, its version says which llama.cpp source to fetch",
            hint=f"install llama-cpp-python, or set {TREE_VARIABLE} to a llama.cpp source tree",
        ) from exc
    pin = LLAMA_CPP_SOURCES.get(version)
    if pin is None:
        raise FetchError(
            f"no source archive is pinned for llama-cpp-python `{version}`",
            hint=f"install llama-cpp-python=={max(LLAMA_CPP_SOURCES)}, "
            f"or set {TREE_VARIABLE} to a llama.cpp source tree",
        )
    return fetch_unpacked(pin, label="llama.cpp", pick=_pick, suffix=suffix)


def _pick(name: str) -> str | None:
    _, _, inside = name.partition("/")  # the archive's one top folder
    if not inside.startswith(_ROOT):
        return None
    relative = inside.removeprefix(_ROOT)
    return None if relative.startswith(_LEFT_OUT) else relative


def _check_tree(tree: Path) -> Path:
    for name in _NEEDED:
        if not (tree / name).is_file():
            raise ArtifactError(
                f"`{tree}` ({TREE_VARIABLE}) is no llama.cpp source tree of mid-2026 or later: no `{name}`",
                hint=f"correct {TREE_VARIABLE}, or unset it to use the pinned source",
                path=str(tree),
            )
    return tree
