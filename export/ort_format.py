"""Write a standard ONNX model in onnxruntime's own format, one file: the child's side.

`python -m ammd.export.ort_format GRAPH FILE`. Builds of onnxruntime that are made for a few models, as for phones,
read no other format. What is stored is the graph as onnxruntime would have changed it when it opened `model.onnx`,
for the CPU of any machine: fused operators, but not the last level, which lays weights out for the processor at hand.
A reader changes nothing any more, so that without fused operators int8 would run at half the speed, and with them
`model.ort` and `model.onnx` give the same logits. onnxruntime writes one small table in the order of its hashes, which
follow from addresses in memory; on Linux they are the same in each process here, and so are the file's bytes.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ammd.errors import ExportError

from .captured import end_child
from .standard_graph import WEIGHTS

_FIXED = "AMMD_FIXED_ADDRESSES"  # set in a process that was started again
_ASK, _NO_RANDOM_ADDRESSES = 0xFFFFFFFF, 0x0040000  # of Linux's personality(2)
_LARGEST_BYTES = 2**31 - 2**26  # of a flatbuffer, less room for the graph


def main(arguments: Sequence[str]) -> None:
    """Convert one model.

    Raises:
        ExportError: The weights are more than the format holds.
    """
    from onnxruntime import GraphOptimizationLevel, InferenceSession, SessionOptions

    source, target = Path(arguments[0]), Path(arguments[1])
    check_size(source.with_name(WEIGHTS).stat().st_size)
    options = SessionOptions()
    options.graph_optimization_level = GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(target)
    options.add_session_config_entry("session.save_model_format", "ORT")
    InferenceSession(source, options, providers=["CPUExecutionProvider"])


def fix_addresses() -> None:
    """Start this process again at addresses that do not change; where that is not allowed, go on as it is."""
    if sys.platform != "linux" or _FIXED in os.environ:
        return
    personality = ctypes.CDLL(None).personality
    personality.argtypes = (ctypes.c_ulong,)
    if personality(personality(_ASK) | _NO_RANDOM_ADDRESSES) != -1:
        os.environ[_FIXED] = "1"
        os.execv(sys.executable, [sys.executable, "-P", "-m", "ammd.export.ort_format", *sys.argv[1:]])


def check_size(weight_bytes: int) -> None:
    """Refuse weights that are more than the format holds.

    Raises:
        ExportError: They are.
    """
    if weight_bytes > _LARGEST_BYTES:
        raise ExportError(
            f"`model.ort` holds less than 2 GiB, the weights are {weight_bytes / 2**30:.1f} GiB",
            hint="leave out `export.onnx.ort_format`, or take a smaller scheme",
            expected=_LARGEST_BYTES,
            found=weight_bytes,
        )


if __name__ == "__main__":
    fix_addresses()
    end_child(main)
