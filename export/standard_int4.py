"""Quantize the matrices of an ONNX graph to 4 bits in blocks, with onnxruntime's own quantizer.

Products become MatMulNBits, an operator of onnxruntime's own, of every build but the smallest. The mix is the one of
`onnx-int4`: the head, and the matrices that llama.cpp's Q4_K_M keeps finer, have 8 bits unless the settings say
otherwise. An embedding that is tied to the head is read from the head's blocks; one of its own gets 8 bits a weight.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from .dynamic_int8 import quantize_lookup
from .standard_graph import (
    Contents,
    find_lookup,
    initializers,
    set_initializers,
    set_nodes,
    weight_products,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

    from .settings import OnnxSettings

_DOMAIN = "com.microsoft"


def quantize_int4(model: ModelProto, settings: OnnxSettings) -> tuple[ModelProto, Contents]:
    """Return the quantized model, and what gives a matrix that it lacks; the model given is used up."""
    from onnx import helper

    lookup = find_lookup(model.graph)
    head = next(
        node for node, weight in weight_products(model.graph) if node.output[0] == model.graph.output[0].name
    )
    is_tied = lookup.input[0] == head.input[1]
    contents = {} if is_tied else quantize_lookup(model.graph)
    kept = [head.name] if settings.head == "float32" else []
    quantized = _quantize_products(model, settings, finer=finer_products(model.graph, settings), kept=kept)
    if is_tied and not kept:
        _share_lookup(quantized.graph, head_name=head.name)
    if not any(entry.domain == _DOMAIN for entry in quantized.opset_import):
        quantized.opset_import.append(helper.make_opsetid(_DOMAIN, 1))
    return quantized, contents


def _quantize_products(
    model: ModelProto, settings: OnnxSettings, *, finer: Sequence[str], kept: Sequence[str]
) -> ModelProto:
    """Give each product MatMulNBits' 4 bits, those in `finer` 8 bits, and leave those in `kept` as they are."""
    from onnxruntime.quantization.matmul_nbits_quantizer import (
        KQuantWeightOnlyQuantConfig,
        MatMulNBitsQuantizer,
        RTNWeightOnlyQuantConfig,
    )

    def quantized(model: ModelProto, **options: Any) -> ModelProto:
        quantizer = MatMulNBitsQuantizer(
            model,
            block_size=settings.block_size,
            is_symmetric=settings.symmetric,
            accuracy_level=settings.accuracy_level,
            **options,
        )
        quantizer.process()
        made: ModelProto = quantizer.model.model
        return made

    if settings.algorithm == "mlas":  # one width at a time
        model = quantized(model, bits=4, nodes_to_exclude=[*kept, *finer])
        return quantized(model, bits=8, nodes_to_exclude=kept) if finer else model
    algorithm = KQuantWeightOnlyQuantConfig if settings.algorithm == "k_quant" else RTNWeightOnlyQuantConfig
    bits = {name: {"bits": 8} for name in finer}
    return quantized(model, nodes_to_exclude=kept, algo_config=algorithm(customized_weight_config=bits))


def finer_products(graph: GraphProto, settings: OnnxSettings) -> list[str]:
    """Return the names of the products whose matrix gets 8 bits."""
    products = [node for node, _ in weight_products(graph)]
    layers = 1 + max((layer for node in products if (layer := _layer(node.name)) is not None), default=-1)
    finer = []
    for node in products:
        layer = _layer(node.name)
        if node.output[0] == graph.output[0].name:
            if settings.head == "int8":
                finer.append(node.name)
        elif (
            settings.sensitive_layers == "int8"
            and layer is not None
            and _is_sensitive(node.name, layer, layers)
        ):
            finer.append(node.name)
    return finer


def _layer(name: str) -> int | None:
    found = re.search(r"/layers\.(\d+)/", name)
    return int(found[1]) if found else None


def _is_sensitive(name: str, layer: int, layers: int) -> bool:
    """Tell whether the builder of onnxruntime-genai, which repeats Q4_K_M's choice, keeps this matrix finer."""
    is_named = re.search(r"/(?:[qkv]_proj|down_proj)/", name) is not None
    return is_named and (
        layer < layers / 8 or layer >= 7 * layers / 8 or (layer - round(layers / 8)) % 3 == 2
    )


def _share_lookup(graph: GraphProto, *, head_name: str) -> None:
    """Let the lookup of a tied head read the head's blocks.

    In standard operators: GatherBlockQuantized wants the matrix in another shape, and a Reshape of stored weights is
    folded into a copy of them when a model is opened.
    """
    from onnx import helper

    lookup = find_lookup(graph)
    head = next(
        node for node in graph.node if node.op_type == "MatMulNBits" and node.name.startswith(head_name)
    )
    turn = next(node for node in graph.node if lookup.output[0] in node.input)
    facts: dict[str, Any] = {entry.name: helper.get_attribute_value(entry) for entry in head.attribute}
    builder = _Lookup(prefix=lookup.name, tokens=lookup.input[1], bits=facts["bits"])
    builder.read_blocks(list(head.input[1:]), columns=facts["K"], output=turn.output[0])
    nodes: list[NodeProto] = []
    for node in graph.node:
        if node.name == lookup.name:
            nodes += builder.nodes
        elif node.name != turn.name:
            nodes.append(node)
    table = lookup.input[0]
    set_nodes(graph, nodes)
    kept = [tensor for name, tensor in initializers(graph).items() if name != table]
    set_initializers(graph, [*kept, *builder.constants])


class _Lookup:
    """The nodes that take the rows of some tokens out of MatMulNBits' weights: uint8 [V, blocks, bytes of a block]."""

    def __init__(self, *, prefix: str, tokens: str, bits: int) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        self._prefix, self._tokens, self._bits = prefix, tokens, bits

    def read_blocks(self, weights: Sequence[str], *, columns: int, output: str) -> None:
        """Add all nodes; `weights` are the matrix, its scales [V, blocks] and, unless symmetric, its zero points."""
        values = self._numbers(self._take(weights[0]), shape=(0, 0, 0, -1))
        if len(weights) > 2:
            zero = self._numbers(self._take(weights[2]), shape=(0, 0, -1))
            zero = self._add("Unsqueeze", zero, self._ints("last", (-1,)))
        else:
            zero = self._constant("middle", [float(1 << (self._bits - 1))], "float32")
        scale = self._add("Unsqueeze", self._take(weights[1]), self._ints("last", (-1,)))
        rows = self._add("Mul", self._add("Sub", values, zero), scale)
        rows = self._add("Reshape", rows, self._ints("rows", (0, 0, -1)))
        # A last block that the row does not fill is stored whole.
        ends = [self._ints(name, (place,)) for name, place in (("from", 0), ("to", columns), ("axis", 2))]
        self._add("Slice", rows, *ends, output=output)

    def _take(self, table: str) -> str:
        return self._add("Gather", table, self._tokens)

    def _numbers(self, stored: str, *, shape: tuple[int, ...]) -> str:
        """Turn bytes into numbers; two of four bits lie in a byte, the low one first."""
        from onnx import TensorProto

        if self._bits == 4:
            low = self._add("BitwiseAnd", stored, self._constant("low", [15], "uint8"))
            high = self._add("BitShift", stored, self._constant("four", [4], "uint8"), direction="RIGHT")
            last = self._ints("last", (-1,))
            pair = [self._add("Unsqueeze", half, last) for half in (low, high)]
            stored = self._add("Concat", *pair, axis=-1)
            stored = self._add("Reshape", stored, self._ints(f"shape{len(shape)}", shape))
        return self._add("Cast", stored, to=TensorProto.FLOAT)

    def _add(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        from onnx import helper

        name = f"{self._prefix}/{kind}_{len(self.nodes)}"
        # The first node keeps the lookup's own name.
        node = helper.make_node(
            kind, inputs, [output or name], name=name if self.nodes else self._prefix, **attributes
        )
        self.nodes.append(node)
        return str(node.output[0])

    def _ints(self, name: str, values: tuple[int, ...]) -> str:
        return self._constant(name, list(values), "int64")

    def _constant(self, name: str, values: list[Any], kind: str) -> str:
        import numpy as np
        from onnx import numpy_helper

        full = f"{self._prefix}/{name}"
        if full not in {tensor.name for tensor in self.constants}:
            self.constants.append(numpy_helper.from_array(np.array(values, kind), full))
        return full
