"""Write a checkpoint as an ONNX graph of standard operators, with optimum's exporter: the child's side.

`python -m ammd.export.standard_exporter CHECKPOINT TRACE FOLDER` leaves `model.onnx` with its weights beside it in
FOLDER, in float32; TRACE is a folder to work in.
optimum traces the model that transformers builds; what is made plain afterwards:

- A traced matrix is called after a number of the trace. It gets the checkpoint's name, which conversions go by.
- The trace holds a head that is tied to the embedding as a second matrix, transposed. The lookup then takes columns
  of the head's matrix, so that the weights are stored once and every product still has a matrix of its own, which is
  what quantizers look for. (A transposed embedding in the head's place would be folded into a copy by onnxruntime
  when it opens the model, and written twice into its own format.)
- Remarks of the tracer, which may name source files, are dropped: equal checkpoints give equal bytes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ammd.errors import ExportError

from .captured import end_child
from .checkpoint_facts import read_json
from .standard_graph import (
    GRAPH,
    find_lookup,
    initializers,
    load_graph,
    save_graph,
    set_initializers,
    weight_products,
)

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto

_TASK = "text-generation-with-past"


def main(arguments: Sequence[str]) -> None:
    """Export one checkpoint.

    Raises:
        ExportError: optimum does not know the architecture, or the rotary embedding's form is too new for it.
    """
    checkpoint, traced, folder = (Path(argument) for argument in arguments)
    tied = _trace(checkpoint, traced / GRAPH)
    model = load_graph(traced / GRAPH)
    strip_remarks(model)
    name_weights(model.graph)
    if tied:
        tie_head(model.graph)
    save_graph(model, folder)


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


def name_weights(graph: GraphProto) -> None:
    """Call each matrix of a product after the checkpoint's tensor, as the node's own name gives it."""
    new_names: dict[str, str] = {}
    for node, weight in weight_products(graph):
        if found := re.fullmatch(r"/(.+)/MatMul", node.name):
            new_names.setdefault(weight.name, found[1].replace("/", ".") + ".weight")
    for tensor in graph.initializer:
        tensor.name = new_names.get(tensor.name, tensor.name)
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = new_names.get(name, name)


def tie_head(graph: GraphProto) -> None:
    """Let the lookup read the head's matrix, if that is the embedding to the last bit."""
    import numpy as np
    from onnx import helper, numpy_helper

    weights = initializers(graph)
    lookup = find_lookup(graph)
    head = next((weight for node, weight in weight_products(graph) if "lm_head" in node.name), None)
    embedding = weights[lookup.input[0]]
    if head is None or not np.array_equal(
        numpy_helper.to_array(embedding).T, numpy_helper.to_array(head), equal_nan=True
    ):
        return
    columns = f"{lookup.name}/columns"
    turn = helper.make_node(
        "Transpose", [columns], list(lookup.output), name=f"{lookup.name}/Transpose", perm=[1, 2, 0]
    )
    read = helper.make_node("Gather", [head.name, lookup.input[1]], [columns], name=lookup.name, axis=1)
    place = list(graph.node).index(lookup)
    graph.node.remove(lookup)
    graph.node.insert(place, turn)
    graph.node.insert(place, read)
    set_initializers(graph, [tensor for tensor in graph.initializer if tensor.name != embedding.name])


def _trace(checkpoint: Path, path: Path) -> bool:
    """Let optimum write the graph; return whether the head is tied."""
    import torch
    from optimum.exporters.onnx import export
    from optimum.exporters.tasks import TasksManager
    from transformers import AutoModelForCausalLM

    rope = rope_arguments(read_json(checkpoint / "config.json"))
    model = AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=torch.float32, local_files_only=True, **rope
    )
    try:
        build_config = TasksManager.get_exporter_config_constructor(
            exporter="onnx", model=model, task=_TASK, library_name="transformers"
        )
    except (KeyError, ValueError) as exc:
        raise ExportError(
            f"optimum cannot export a model of type `{model.config.model_type}` with a key-value cache",
            hint="leave the `onnx-standard` schemes out",
        ) from exc
    config = build_config(model.config, use_past=True, use_past_in_inputs=True)
    export(model=model, config=config, output=path, opset=config.DEFAULT_ONNX_OPSET)
    return bool(model.config.tie_word_embeddings)


if __name__ == "__main__":
    end_child(main)
