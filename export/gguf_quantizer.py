"""The child process that quantizes: `python -m ammd.export.gguf_quantizer REQUEST`, a JSON object.

llama.cpp says only in its log which matrices it stores in another type than it meant, so the log is read here and
written beside the file as `TARGET.fallbacks.json`: the type that was meant, by tensor.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .mapped_files import released_mappings

FALLBACKS_SUFFIX = ".fallbacks.json"
_FALLBACK = re.compile(r"warning: (\S+)\s+- ncols\s+\d+ not divisible by\s+\d+ \(required for type\s+(\w+)\)")
_TEXT_BYTES = 127  # of a value in llama.h's llama_model_kv_override


def main(arguments: Sequence[str]) -> int:
    """Quantize the GGUF `source` to `target` with llama.cpp and return its status; 0 is success."""
    llama_cpp = _bindings()
    request = json.loads(arguments[0])
    log: list[str] = []

    def keep(_level: int, text: bytes, _data: ctypes.c_void_p) -> None:
        log.append(text.decode(errors="replace"))
        sys.stderr.write(log[-1])

    callback = llama_cpp.llama_log_callback(keep)
    llama_cpp.llama_log_set(callback, ctypes.c_void_p(0))
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{request['file_type']}")
    params.nthread = request["threads"]
    held: list[Any] = []  # what the parameters only point to
    stated: dict[str, str | int] = dict(request["metadata"])
    if request["imatrix"] is not None:
        stated |= _add_imatrix(llama_cpp, params, Path(request["imatrix"]), held)
    _state(llama_cpp, params, stated, held)
    if request["overrides"]:
        _add_overrides(llama_cpp, params, request["overrides"], held)
    target = request["target"]
    with released_mappings():
        status = int(llama_cpp.llama_model_quantize(request["source"].encode(), target.encode(), params))
    found = {name: kind.upper() for name, kind in _FALLBACK.findall("".join(log))}
    Path(target + FALLBACKS_SUFFIX).write_text(json.dumps(found), encoding="utf-8")
    return status


def _bindings() -> Any:
    """Return llama-cpp-python's names of llama.h alone; what the package adds to them takes 0.15 s to import."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None:
        raise ModuleNotFoundError("No module named 'llama_cpp'")
    sys.modules["llama_cpp"] = importlib.util.module_from_spec(spec)
    return importlib.import_module("llama_cpp.llama_cpp")


def _add_imatrix(llama_cpp: Any, params: Any, path: Path, held: list[Any]) -> dict[str, str | int]:
    """Point `params` to the matrix, and return what llama.cpp's own tool has a file say of it."""
    from .file_metadata import dataset_names
    from .imatrix import read_imatrix

    imatrix = read_imatrix(path)
    entries = []
    for name, mean in imatrix.means().items():
        held.append(mean)
        pointer = mean.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entries.append(llama_cpp.llama_model_imatrix_data(name=name.encode(), data=pointer, size=mean.size))
    entries.append(llama_cpp.llama_model_imatrix_data(name=None, data=None, size=0))
    array = (llama_cpp.llama_model_imatrix_data * len(entries))(*entries)
    held += [entries, array]
    params.imatrix = array
    return {
        "quantize.imatrix.file": path.name,
        "quantize.imatrix.dataset": " ".join(dataset_names(imatrix.datasets)),
        "quantize.imatrix.entries_count": len(imatrix.sums),
        "quantize.imatrix.chunks_count": imatrix.chunks,
    }


def _state(llama_cpp: Any, params: Any, stated: Mapping[str, str | int], held: list[Any]) -> None:
    """Point `params` to what the file says beside, or instead of, what its source does."""
    overrides = (llama_cpp.llama_model_kv_override * (len(stated) + 1))()  # the last one is empty
    for override, (key, value) in zip(overrides, stated.items(), strict=False):
        override.key = key.encode()
        if isinstance(value, str):
            override.tag = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_STR
            override.value.val_str = value.encode()[:_TEXT_BYTES]
        else:
            override.tag = llama_cpp.LLAMA_KV_OVERRIDE_TYPE_INT
            override.value.val_i64 = value
    held.append(overrides)
    params.kv_overrides = overrides


def _add_overrides(llama_cpp: Any, params: Any, types: Mapping[str, str], held: list[Any]) -> None:
    """Point `params` to the types of single tensors."""
    from gguf import GGMLQuantizationType

    array = (llama_cpp.llama_model_tensor_override * (len(types) + 1))()  # the last one is empty
    for override, (pattern, kind) in zip(array, types.items(), strict=False):
        override.pattern, override.type = pattern.encode(), int(GGMLQuantizationType[kind])
    held.append(array)
    params.tt_overrides = array


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
