"""Turn a float32 ONNX graph into one of another precision: the child's side.

`python -m ammd.export.standard_quantizer SCRATCH FOLDER PRECISION SETTINGS`, with `export.onnx` as JSON, reads
`model.onnx` and its weights in SCRATCH, which is also where large files go, and writes both into FOLDER.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .builder_memory import round_columns_in_pieces, round_in_pieces
from .captured import end_child
from .dynamic_int8 import quantize_int8, wide_products
from .half_weights import halve_weights
from .mapped_files import released_mappings
from .settings import OnnxSettings
from .standard_graph import GRAPH, Contents, save_graph
from .standard_int4 import quantize_int4

if TYPE_CHECKING:
    from onnx import ModelProto


def main(arguments: Sequence[str]) -> None:
    """Convert one graph.

    Raises:
        ExportError: The weights do not fit the precision.
    """
    import onnx

    scratch, folder = (Path(argument).absolute() for argument in arguments[:2])
    settings = OnnxSettings.model_validate_json(arguments[3])
    os.chdir(scratch)  # where all libraries look for the weights of a graph that is given without its file
    model = onnx.load(GRAPH, load_external_data=False)
    with released_mappings():
        model, contents = _converted(model, settings, precision=arguments[2], scratch=scratch)
        save_graph(model, folder, contents)


def _converted(
    model: ModelProto, settings: OnnxSettings, *, precision: str, scratch: Path
) -> tuple[ModelProto, Contents]:
    if precision == "fp16":
        return model, halve_weights(model.graph)
    if precision == "int8":
        return model, quantize_int8(model.graph, float_products=wide_products(scratch / GRAPH))
    rounding = importlib.import_module("onnxruntime.quantization.neural_compressor.weight_only")
    round_in_pieces(rounding, scratch)
    own = importlib.import_module("onnxruntime.quantization.matmul_nbits_quantizer")
    round_columns_in_pieces(own.DefaultWeightOnlyQuantizer, scratch)
    return quantize_int4(model, settings)


if __name__ == "__main__":
    end_child(main)
