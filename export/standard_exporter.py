"""Write a checkpoint as an ONNX graph of standard operators, with optimum's exporter: the child's side.

`python -m ammd.export.standard_exporter CHECKPOINT TRACE FOLDER` leaves `model.onnx` with its weights beside it in
FOLDER, in float32; TRACE is a folder to work in.
optimum traces the model that transformers builds, without its weights (`weightless_trace`), which then go from the
checkpoint to the file some rows at a time. What is made plain in the graph:

- A traced matrix is called after a number of the trace. It gets the checkpoint's name, which conversions go by.
- The trace holds a head that is tied to the embedding as a second matrix, transposed. The lookup then takes columns
  of the head's matrix, so that the weights are stored once and every product still has a matrix of its own, which is
  what quantizers look for. (A transposed embedding in the head's place would be folded into a copy by onnxruntime
  when it opens the model, and written twice into its own format.)
- Remarks of the tracer, which may name source files, are dropped: equal checkpoints give equal bytes.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ammd.errors import ExportError
from ammd.safetensors_header import read_headers

from .captured import end_child
from .checkpoint_facts import read_json
from .external_weights import rows_in_pieces
from .mapped_files import released_mappings
from .standard_graph import (
    GRAPH,
    SMALLEST_OUTSIDE_BYTES,
    Contents,
    find_lookup,
    save_graph,
    set_initializers,
)
from .weightless_trace import ReadMatrix, WeightlessTrace

if TYPE_CHECKING:
    import torch
    from onnx import GraphProto, ModelProto, NodeProto

_TASK = "text-generation-with-past"


def main(arguments: Sequence[str]) -> None:
    """Export one checkpoint.

    Raises:
        ExportError: optimum does not know the architecture, or the rotary embedding's form is too new for it.
    """
    import onnx

    checkpoint, traced, folder = (Path(argument) for argument in arguments)
    with released_mappings():
        matrices, weights = _trace(checkpoint, traced / GRAPH)
        model = onnx.load(traced / GRAPH)
        strip_remarks(model)
        new_names = name_weights(model.graph, matrices)
        matrices = {new_names.get(name, name): matrix for name, matrix in matrices.items()}
        tie_head(model.graph, matrices)
        save_graph(model, folder, put_matrices(model.graph, matrices, weights))


def rope_arguments(config: dict[str, Any]) -> dict[str, Any]:
    """Return a rotary embedding as transformers 4 spells it; nothing where it is spelled so already.

    Raises:
        ExportError: It differs between layers, which transformers 4 had no common form for.
    """
    rope = config.get("rope_parameters")
    if not rope or "rope_theta" in config:
        return {}
    if "rope_theta" not in rope:
        raise ExportError(
            "`rope_parameters` of the checkpoint's config.json has no `rope_theta`, optimum's transformers 4 "
            "would misread it",
            hint="leave the `onnx-standard` schemes out",
        )
    scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
    is_plain = scaling.get("rope_type", "default") == "default"
    return {"rope_theta": rope["rope_theta"]} | ({} if is_plain else {"rope_scaling": scaling})


def strip_remarks(model: ModelProto) -> None:
    """Drop what says where and how the graph was traced."""
    del model.metadata_props[:]
    model.doc_string = ""
    model.graph.doc_string = ""
    del model.graph.value_info[:]  # shapes that conversions would have to keep true
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]


def name_weights(graph: GraphProto, matrices: Collection[str]) -> Mapping[str, str]:
    """Call each of the `matrices` in a product after the checkpoint's tensor, as the node's own name gives it.

    Returns:
        The new names by the old ones.
    """
    new_names: dict[str, str] = {}
    for node in graph.node:
        found = re.fullmatch(r"/(.+)/MatMul", node.name)
        if found and node.op_type == "MatMul" and node.input[1] in matrices:
            new_names.setdefault(node.input[1], found[1].replace("/", ".") + ".weight")
    for tensor in graph.initializer:
        tensor.name = new_names.get(tensor.name, tensor.name)
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = new_names.get(name, name)
    return new_names


def tie_head(graph: GraphProto, matrices: Mapping[str, ReadMatrix]) -> None:
    """Let the lookup read the head's matrix, if that is the embedding transposed."""
    lookup = find_lookup(graph)
    embedding = matrices.get(lookup.input[0])
    head = next(
        (
            name
            for name, one in matrices.items()
            if embedding and one == replace(embedding, is_transposed=True)
        ),
        None,
    )
    if head is not None:
        read_columns(graph, lookup, head)


def read_columns(graph: GraphProto, lookup: NodeProto, head: str) -> None:
    """Let the lookup read columns of the matrix `head` in the place of rows of its own, which is no longer stored."""
    from onnx import helper

    columns = f"{lookup.name}/columns"
    turn = helper.make_node(
        "Transpose", [columns], list(lookup.output), name=f"{lookup.name}/Transpose", perm=[1, 2, 0]
    )
    read = helper.make_node("Gather", [head, lookup.input[1]], [columns], name=lookup.name, axis=1)
    place = list(graph.node).index(lookup)
    graph.node.remove(lookup)
    graph.node.insert(place, turn)
    graph.node.insert(place, read)
    set_initializers(graph, [tensor for tensor in graph.initializer if tensor.name != lookup.input[0]])


def put_matrices(
    graph: GraphProto, matrices: Mapping[str, ReadMatrix], weights: Mapping[str, torch.Tensor]
) -> Contents:
    """Give the graph's tensors the shapes of the matrices, and return what gives their numbers, in float32."""
    contents = {}
    for tensor in graph.initializer:
        if tensor.name in matrices:
            matrix = matrices[tensor.name]
            weight = weights[matrix.parameter]
            stored = weight.T if matrix.is_transposed else weight
            tensor.dims[:] = stored.shape
            contents[tensor.name] = partial(_float32_pieces, stored)
    return contents


def _float32_pieces(matrix: torch.Tensor) -> Iterator[memoryview]:
    for rows in rows_in_pieces(matrix):
        yield rows.float().contiguous().numpy().data


def _trace(checkpoint: Path, path: Path) -> tuple[Mapping[str, ReadMatrix], Mapping[str, torch.Tensor]]:
    """Let optimum write the graph without its matrices; return these, and the checkpoint's weights by name."""
    import torch
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    rope = rope_arguments(read_json(checkpoint / "config.json"))
    config = AutoConfig.from_pretrained(checkpoint, local_files_only=True, **rope)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    build_config = exporter_config(model, task=_TASK, having="a key-value cache")
    weights = _mapped_weights(checkpoint, config)
    trace = WeightlessTrace(model, weights, smallest_bytes=SMALLEST_OUTSIDE_BYTES)
    trace.export(build_config(model.config, use_past=True, use_past_in_inputs=True), path)
    return trace.matrices, weights


def exporter_config(model: Any, *, task: str, having: str) -> Any:
    """Return optimum's own description of how a model is traced, to be made for one of its forms.

    Args:
        model: Of transformers.
        task: As optimum calls it.
        having: What the task asks of the model, for the error.

    Raises:
        ExportError: optimum has none.
    """
    from optimum.exporters.tasks import TasksManager

    importlib.import_module("optimum.exporters.onnx.model_configs")  # makes its models known to the manager
    try:
        return TasksManager.get_exporter_config_constructor(
            exporter="onnx", model=model, task=task, library_name="transformers"
        )
    except (KeyError, ValueError) as exc:
        raise ExportError(
            f"optimum cannot export a model of type `{model.config.model_type}` with {having}",
            hint="leave the `onnx-standard` schemes out",
        ) from exc


def stored_dtype(checkpoint: Path) -> torch.dtype:
    """Return the type in which a checkpoint's tensors are views of their file; float32 where they have several."""
    import torch

    kinds = {entry["dtype"] for entry in read_headers(checkpoint).values()}
    return {"F16": torch.float16, "BF16": torch.bfloat16}.get("".join(kinds), torch.float32)


def _mapped_weights(checkpoint: Path, config: Any) -> Mapping[str, torch.Tensor]:
    """Return transformers' own names of the checkpoint's tensors, which stay in their files until they are read."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        checkpoint, config=config, dtype=stored_dtype(checkpoint), local_files_only=True
    )
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


if __name__ == "__main__":
    end_child(main)
