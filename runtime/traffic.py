"""What a decoded token moves and computes: the bytes of `architecture`, and the numbers that stand behind them.

Bytes rule the rate of decoding, weights that of a prompt. Of a mixture's experts those count that a token is sent to.
Nothing is loaded: a GGUF is mapped, of an ONNX folder only the graph is read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ammd.errors import ArtifactError, EngineError
from ammd.gguf_reader import GGUF_DAMAGES, open_gguf

from .architecture import EXPERTS, has_encoder, read_architecture, used_experts
from .artifact_ref import EngineKind, detect_kind
from .onnx_folder import OnnxFolder, read_onnx_folder

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
        EngineError: It is a checkpoint, which is no file for a device, or an encoder-decoder.
    """
    kind = detect_kind(path)
    if kind is EngineKind.TORCH:
        raise EngineError(f"`{path}` is a checkpoint", hint="give a .gguf file or an ONNX folder")
    if has_encoder(path):
        raise EngineError(
            f"`{path}` is an encoder-decoder, and published rates of phones are those of decoders alone",
            hint="measure it on the phone: `ammd bench FILE --device DEVICE --engine ENGINE`",
            path=str(path),
        )
    reads = read_architecture(path)
    cache = "f16" if kind is EngineKind.LLAMA_CPP else "f32"  # as engines have it by default
    keys = reads.kv_bytes_per_token(cache, context_tokens=0)
    try:
        counts = _of_gguf(path) if kind is EngineKind.LLAMA_CPP else _of_onnx(read_onnx_folder(path))
        if not reads.weight_bytes_per_token or not keys:
            raise ValueError("no weights, or no cache of a known shape")
    except GGUF_DAMAGES as exc:
        raise ArtifactError(f"`{path}` does not say what it holds: {exc}", path=str(path)) from exc
    return Traffic(
        weight_bytes_per_token=reads.weight_bytes_per_token, kv_bytes_per_token=round(keys), **counts
    )


def _of_gguf(path: Path) -> dict[str, Any]:
    reader = open_gguf(path)
    names = {tensor.name for tensor in reader.tensors}
    head = "output.weight" if "output.weight" in names else "token_embd.weight"
    parameters = body = 0.0
    for tensor in reader.tensors:
        if tensor.name == "token_embd.weight" and head != tensor.name:
            continue
        share = used_experts(reader) if EXPERTS in tensor.name else 1.0
        parameters += share * int(tensor.n_elements)
        if tensor.name != head:
            body += share * int(tensor.n_elements)
    family = reader.fields["general.architecture"].contents()
    return {
        "body_parameters": round(body),
        "parameters": round(parameters),
        "layers": int(reader.fields[f"{family}.block_count"].contents()),
        "has_k_quants": any(_is_k_quant(tensor) for tensor in reader.tensors if tensor.name != head),
    }


def _is_k_quant(tensor: Any) -> bool:
    return str(tensor.tensor_type.name).endswith("_K")


def _of_onnx(folder: OnnxFolder) -> dict[str, Any]:
    import onnx

    model = onnx.load(str(folder.graph), load_external_data=False)
    stored = {one.name: one for one in model.graph.initializer}
    counts: dict[str, int] = {}
    heads = set()
    for node in model.graph.node:
        if node.op_type in _PASSING and node.input[0] in stored:  # a tied head is the table, turned
            stored[node.output[0]] = stored[node.input[0]]
            continue
        matrices = [name for name in node.input if name in stored and len(stored[name].dims) > 1]
        if node.op_type not in _MATRIX_NODES or not matrices:
            continue
        counts[matrices[0]], shape = _matrix(node, stored[matrices[0]].dims)
        if folder.vocab_size in shape:
            heads.add(matrices[0])
    parameters = sum(counts.values())
    return {
        "body_parameters": parameters - sum(counts[name] for name in heads),
        "parameters": parameters,
        "layers": sum(
            one.name.startswith("past_key_values.") and one.name.endswith("key") for one in model.graph.input
        ),
        "has_k_quants": False,
    }


def _matrix(node: Any, dims: Any) -> tuple[int, Sequence[int]]:
    """Return how many weights a node's matrix stands for, and its sides; packed ones are stated in its attributes."""
    stated: Mapping[str, int] = {one.name: one.i for one in node.attribute}
    sides = (stated["N"], stated["K"]) if node.op_type == "MatMulNBits" else tuple(dims)
    return math.prod(sides), sides
