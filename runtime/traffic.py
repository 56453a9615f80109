"""What a decoded token moves through memory: the weights that are read, and keys and values by position.

A model's file says it. The table of embeddings is only looked into, a row a token; where the head is the same table,
it is read whole, as the head. Of a mixture's experts those count that a token is sent to. Nothing is loaded: a GGUF is
mapped, of an ONNX folder only the graph is read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ammd.errors import ArtifactError, EngineError
from ammd.gguf_reader import open_gguf

from .artifact_ref import EngineKind, detect_kind
from .onnx_folder import OnnxFolder, read_onnx_folder

_CACHE_BYTES = {
    EngineKind.LLAMA_CPP: 2,
    EngineKind.ONNX_GENAI: 4,
}  # of one number of the cache, as engines have it
_EXPERTS = "_exps."
_ITEM_BITS = {1: 32, 2: 8, 3: 8, 6: 32, 7: 64, 10: 16, 16: 16, 21: 4, 22: 4}  # ONNX's element types
_MATRIX_NODES = {
    "MatMul",
    "Gemm",
    "MatMulNBits",
    "MatMulInteger",
    "DynamicQuantizeMatMul",
    "DequantizeLinear",
}

_PASSING = {"Transpose", "Identity", "Cast"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What one token of a model costs."""

    weight_bytes_per_token: int
    kv_bytes_per_token: int  # that each position before it adds
    body_parameters: (
        int  # weights of all layers: a prompt's token passes through these, and not through the head
    )
    parameters: int  # with the head
    layers: int
    has_k_quants: bool  # llama.cpp's kernels for them differ from those for plain blocks

    @property
    def bits_per_weight(self) -> float:
        """Of the weights that are read."""
        return 8 * self.weight_bytes_per_token / self.parameters


def traffic_of(path: Path) -> Traffic:
    """Return what a token of an exported file costs.

    Raises:
        ArtifactError: There is no such file, or it is damaged.
        EngineError: It is a checkpoint, which is no file for a device.
    """
    kind = detect_kind(path)
    if kind is EngineKind.TORCH:
        raise EngineError(f"`{path}` is a checkpoint", hint="give a .gguf file or an ONNX folder")
    try:
        return _of_gguf(path) if kind is EngineKind.LLAMA_CPP else _of_onnx(read_onnx_folder(path))
    except (OSError, ValueError, IndexError, KeyError) as exc:
        raise ArtifactError(f"`{path}` does not say what it holds: {exc}", path=str(path)) from exc


def _of_gguf(path: Path) -> Traffic:
    reader = open_gguf(path)

    def value(name: str, default: Any = None) -> Any:
        field = reader.fields.get(f"{arch}.{name}")
        return default if field is None else field.contents()

    arch = reader.fields["general.architecture"].contents()
    names = {tensor.name for tensor in reader.tensors}
    head = "output.weight" if "output.weight" in names else "token_embd.weight"
    used = value("expert_used_count", 1) / value("expert_count", 1) if value("expert_count", 0) else 1.0
    weight_bytes = parameters = body = 0.0
    for tensor in reader.tensors:
        if tensor.name == "token_embd.weight" and head != tensor.name:
            continue
        share = used if _EXPERTS in tensor.name else 1.0
        weight_bytes += share * int(tensor.n_bytes)
        parameters += share * int(tensor.n_elements)
        if tensor.name != head:
            body += share * int(tensor.n_elements)
    layers = int(value("block_count"))
    heads = value("attention.head_count_kv", value("attention.head_count"))
    kv_heads = sum(heads) if isinstance(heads, list) else layers * int(heads)
    all_heads = value("attention.head_count")
    size = value("embedding_length") // (max(all_heads) if isinstance(all_heads, list) else all_heads)
    width = value("attention.key_length", size) + value("attention.value_length", size)
    return Traffic(
        weight_bytes_per_token=round(weight_bytes),
        kv_bytes_per_token=kv_heads * width * _CACHE_BYTES[EngineKind.LLAMA_CPP],
        body_parameters=round(body),
        parameters=round(parameters),
        layers=layers,
        has_k_quants=any(_is_k_quant(tensor) for tensor in reader.tensors if tensor.name != head),
    )


def _is_k_quant(tensor: Any) -> bool:
    return str(tensor.tensor_type.name).endswith("_K")


def _of_onnx(folder: OnnxFolder) -> Traffic:
    import onnx

    model = onnx.load(str(folder.graph), load_external_data=False)
    stored = {one.name: one for one in model.graph.initializer}
    counts: dict[str, int] = {}
    sizes: dict[str, float] = {}
    heads = set()
    for node in model.graph.node:
        if node.op_type in _PASSING and node.input[0] in stored:  # a tied head is the table, turned
            stored[node.output[0]] = stored[node.input[0]]
            continue
        matrices = [name for name in node.input if name in stored and len(stored[name].dims) > 1]
        if node.op_type not in _MATRIX_NODES or not matrices:
            continue
        for name in node.input:
            if name in stored:
                sizes[name] = math.prod(stored[name].dims) * _ITEM_BITS.get(stored[name].data_type, 32) / 8
        counts[matrices[0]], shape = _matrix(node, stored[matrices[0]].dims)
        if folder.vocab_size in shape:
            heads.add(matrices[0])
    layers = sum(
        one.name.startswith("past_key_values.") and one.name.endswith("key") for one in model.graph.input
    )
    parameters = sum(counts.values())
    if not parameters or not layers or not folder.kv_heads or not folder.head_size:
        raise ValueError("no weights, or no cache of a known shape")
    return Traffic(
        weight_bytes_per_token=round(sum(sizes.values())),
        kv_bytes_per_token=2
        * layers
        * folder.kv_heads
        * folder.head_size
        * _CACHE_BYTES[EngineKind.ONNX_GENAI],
        body_parameters=parameters - sum(counts[name] for name in heads),
        parameters=parameters,
        layers=layers,
        has_k_quants=False,
    )


def _matrix(node: Any, dims: Any) -> tuple[int, Sequence[int]]:
    """Return how many weights a node's matrix stands for, and its sides; packed ones are stated in its attributes."""
    stated: Mapping[str, int] = {one.name: one.i for one in node.attribute}
    sides = (stated["N"], stated["K"]) if node.op_type == "MatMulNBits" else tuple(dims)
    return math.prod(sides), sides
