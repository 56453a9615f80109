"""Do a graph's lookup and its output read the same weights?

The lookup is the gather whose indices are the token ids. The output is the matrix product from which the logits
come by operators that work on each number alone (a bias, a scale, a soft cap, a cast). Both matrices are followed
back to what is stored, through operators that change their form only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .ort_graph import IDS, LOGITS

_CHANGE_FORM = {
    "Reshape",
    "Transpose",
    "Slice",
    "Cast",
    "Identity",
    "Squeeze",
    "Unsqueeze",
    "DequantizeLinear",
}
_CHANGE_INDICES = {"Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten"}
_CHANGE_NUMBERS = {"Add", "Cast", "Clip", "Div", "Identity", "Mul", "Reshape", "Tanh"}


def is_tied(graph: Any) -> bool | None:
    """Tell whether lookup and output read the same weights; None where the graph does not show one of each."""
    producers = {output: node for node in graph.node for output in node.output}
    tables = {
        _follow(node.input[0], producers, _CHANGE_FORM)
        for node in graph.node
        if node.op_type.startswith("Gather")
        and len(node.input) > 1
        and _follow(node.input[1], producers, _CHANGE_INDICES) == IDS
    }
    heads = {_follow(node.input[1], producers, _CHANGE_FORM) for node in _last_products(producers)}
    if len(tables) != 1 or len(heads) != 1:
        return None
    return tables == heads


def _follow(name: str, producers: Mapping[str, Any], passed: set[str]) -> str:
    """Return where a value comes from, through nodes of the kinds in `passed`."""
    while (node := producers.get(name)) is not None and node.op_type in passed:
        name = node.input[0]
    return str(name)


def _last_products(producers: Mapping[str, Any]) -> list[Any]:
    """Return the matrix products from which the logits come."""
    found, open_names, seen = [], [LOGITS], set()
    while open_names:
        name = open_names.pop()
        node = producers.get(name)
        if node is None or name in seen:
            continue
        seen.add(name)
        if "MatMul" in node.op_type or node.op_type == "Gemm":
            found.append(node)
        elif node.op_type in _CHANGE_NUMBERS:
            open_names += node.input
    return found
