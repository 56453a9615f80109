"""Turn a float32 ONNX graph into one of another precision: the child's side.

`python -m ammd.export.standard_quantizer GRAPH FOLDER PRECISION SETTINGS`, with `export.onnx` as JSON, writes
`model.onnx` and its weights into FOLDER.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .captured import end_child
from .dynamic_int8 import quantize_int8, wide_products
from .half_weights import halve_weights
from .settings import OnnxSettings
from .standard_graph import load_graph, save_graph
from .standard_int4 import quantize_int4


def main(arguments: Sequence[str]) -> None:
    """Convert one graph.

    Raises:
        ExportError: The weights do not fit the precision.
    """
    source, folder, precision = Path(arguments[0]), Path(arguments[1]), arguments[2]
    settings = OnnxSettings.model_validate_json(arguments[3])
    model = load_graph(source)
    if precision == "fp16":
        halve_weights(model.graph)
    elif precision == "int8":
        quantize_int8(model.graph, float_products=wide_products(source))
    elif precision == "int4":
        model = quantize_int4(model, settings)
    save_graph(model, folder)


if __name__ == "__main__":
    end_child(main)
