"""Quantize an encoder-decoder's ONNX graphs to int8: the child's side.

`python -m ammd.export.seq2seq_quantizer SCRATCH FOLDER` reads the graphs of `seq2seq_exporter` and their weights in
SCRATCH and writes the same into FOLDER. Which inputs do not bear eight bits is measured on the encoder and, behind
what that gives, on the decoder; both decoder graphs hold the same matrices and so have to agree.

T5 bears less than decoders do (`dynamic_int8`). On flan-t5-small, 142 response tokens:

    step at most    products in float32    KL to the float32 model
    1                          3 of 145    0.405 nats
    0.5                       16           0.028                  <- chosen
    0.1                       53           0.025
    none                     145           0.024, which is that of rounding the matrices
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .captured import end_child
from .checkpoint_facts import read_json
from .dynamic_int8 import quantize_int8, spread_tokens, wide_products
from .mapped_files import released_mappings
from .seq2seq_exporter import DECODER, ENCODER, GRAPHS, NEXT
from .standard_graph import save_graphs

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx import ModelProto

_WIDEST_STEP = 0.5  # in median magnitudes of an input


def main(arguments: Sequence[str]) -> None:
    """Convert the graphs."""
    import onnx

    scratch, folder = (Path(argument).absolute() for argument in arguments)
    os.chdir(scratch)  # where all libraries look for the weights of a graph that is given without its file
    with released_mappings():
        wide = _wide_products(scratch)
        models: dict[str, ModelProto] = {}
        contents: dict[str, Any] = {}
        for name in GRAPHS:
            models[name] = model = onnx.load(name, load_external_data=False)
            contents |= quantize_int8(model.graph, float_products=wide[name])
        save_graphs(models, folder, contents)


def _wide_products(scratch: Path) -> Mapping[str, frozenset[str]]:
    """Return by graph the products whose input stays float32."""
    import numpy as np
    import onnxruntime

    tokens = spread_tokens(int(read_json(scratch / "config.json")["vocab_size"]))
    mask = np.ones_like(tokens)
    source: dict[str, NDArray[Any]] = {"input_ids": tokens, "attention_mask": mask}
    session = onnxruntime.InferenceSession(scratch / ENCODER, providers=["CPUExecutionProvider"])
    (states,) = session.run(None, source)
    target = {"input_ids": tokens, "encoder_attention_mask": mask, "encoder_hidden_states": states}
    decoder = wide_products(scratch / DECODER, target, widest_step=_WIDEST_STEP)
    encoder = wide_products(scratch / ENCODER, source, widest_step=_WIDEST_STEP)
    return {ENCODER: encoder, DECODER: decoder, NEXT: decoder}


if __name__ == "__main__":
    end_child(main)
