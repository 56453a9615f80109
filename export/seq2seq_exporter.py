"""Write an encoder-decoder as ONNX graphs of standard operators, with optimum's exporter: the child's side.

`python -m ammd.export.seq2seq_exporter CHECKPOINT TRACE FOLDER` leaves three graphs in FOLDER, in float32, under the
names that optimum gives them; TRACE is a folder to work in.

    encoder_model.onnx              source -> states
    decoder_model.onnx              start token, states -> logits, keys and values of source and target
    decoder_with_past_model.onnx    a token, those keys and values -> logits, longer keys and values of the target

The three read their matrices from one file, in which each stands once: a trace holds the decoder's twice, and a head
that is tied to the embedding four times. The rest is as in `standard_exporter`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ammd.encoder_decoder import has_tied_head, load_language_model

from .captured import end_child
from .mapped_files import released_mappings
from .standard_exporter import exporter_config, put_matrices, read_columns, stored_dtype, strip_remarks
from .standard_graph import SMALLEST_OUTSIDE_BYTES, find_lookup, save_graphs
from .weightless_trace import ReadMatrix, WeightlessTrace

if TYPE_CHECKING:
    import torch
    from onnx import GraphProto, ModelProto

ENCODER, DECODER, NEXT = "encoder_model.onnx", "decoder_model.onnx", "decoder_with_past_model.onnx"
GRAPHS = (ENCODER, DECODER, NEXT)
_TASK = "text2text-generation-with-past"


def main(arguments: Sequence[str]) -> None:
    """Export one checkpoint.

    Raises:
        ExportError: optimum does not know the architecture.
    """
    import onnx

    checkpoint, traced, folder = (Path(argument) for argument in arguments)
    with released_mappings():
        traces, weights = _trace(checkpoint, traced)
        models: dict[str, ModelProto] = {}
        contents: dict[str, Any] = {}
        for name, matrices in traces.items():
            models[name] = model = onnx.load(traced / name)
            strip_remarks(model)
            matrices = name_by_parameters(model.graph, matrices)
            tie_lookup(model.graph, matrices, weights)
            contents |= put_matrices(model.graph, matrices, weights)
        save_graphs(models, folder, contents)


def name_by_parameters(graph: GraphProto, matrices: Mapping[str, ReadMatrix]) -> dict[str, ReadMatrix]:
    """Call each of the `matrices` after the checkpoint's tensor, and return them by these names."""
    names = {
        name: matrix.parameter if matrix.is_transposed else f"{matrix.parameter}/rows"
        for name, matrix in matrices.items()
    }
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = names.get(name, name)
    return {names[name]: matrix for name, matrix in matrices.items()}


def tie_lookup(
    graph: GraphProto, matrices: dict[str, ReadMatrix], weights: Mapping[str, torch.Tensor]
) -> None:
    """Let the lookup read the head's matrix if the head is tied, also in the encoder's graph, which has no head."""
    lookup = find_lookup(graph)
    table = lookup.input[0]
    if "lm_head.weight" in weights or table not in matrices:
        return
    head = matrices[table].parameter
    if head in matrices:
        read_columns(graph, lookup, head)
        return
    next(tensor for tensor in graph.initializer if tensor.name == table).name = head
    matrices[head] = replace(matrices.pop(table), is_transposed=True)
    read_columns(graph, lookup, head)


def _trace(
    checkpoint: Path, folder: Path
) -> tuple[Mapping[str, Mapping[str, ReadMatrix]], Mapping[str, torch.Tensor]]:
    """Let optimum write the graphs without their matrices; return these by graph, and the checkpoint's weights."""
    import torch
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    config = AutoConfig.from_pretrained(checkpoint, local_files_only=True)
    config.tie_word_embeddings = has_tied_head(
        json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    )
    with init_empty_weights(include_buffers=False):
        model = AutoModelForSeq2SeqLM.from_config(config, dtype=torch.float32)
    build_config = exporter_config(model, task=_TASK, having="an encoder and a cache")
    weights = _mapped_weights(checkpoint)
    trace = WeightlessTrace(model, weights, smallest_bytes=SMALLEST_OUTSIDE_BYTES)
    whole: Any = build_config(model.config, use_past=True)
    traces: dict[str, Mapping[str, ReadMatrix]] = {}
    for name, form, part in (
        (ENCODER, whole.with_behavior("encoder"), model.get_encoder()),
        (DECODER, whole.with_behavior("decoder", use_past=True, use_past_in_inputs=False), None),
        (NEXT, whole.with_behavior("decoder", use_past=True, use_past_in_inputs=True), None),
    ):
        trace.export(form, folder / name, part=part)
        traces[name] = trace.matrices
    return traces, weights


def _mapped_weights(checkpoint: Path) -> Mapping[str, torch.Tensor]:
    """Return transformers' own names of the checkpoint's tensors, which stay in their files until they are read."""
    model = load_language_model(checkpoint, dtype=stored_dtype(checkpoint))
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


if __name__ == "__main__":
    end_child(main)
