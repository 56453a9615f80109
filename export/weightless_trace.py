"""Trace a model without its weights, by optimum's exporter: the graph, and which matrices it reads where.

The exporter runs a model once and looks at shapes alone, yet holds the weights five times: as the model, in messages
from which it infers shapes, in the graph's message, in its bytes, and read from those again. Here a column of numbers
that is stretched to the matrix's width stands in for each matrix. That takes no room, and what the tracer does to a
matrix as a whole shows in the strides: it stores the transposed one, or the one that it was given. A tensor that it
computed from one would not be a number, for a stand-in is none; that is refused.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ammd.errors import ExportError

if TYPE_CHECKING:
    import torch

_TRACING = "_model_to_graph"
_INFERENCE = "_jit_pass_onnx_graph_shape_type_inference"  # of shapes, of torch._C


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadMatrix:
    """A matrix of the model, as the graph holds it."""

    parameter: str  # its name in the model
    is_transposed: bool


class WeightlessTrace:
    """One model and what is known of its trace.

    Args:
        model: Built without weights, its parameters on torch's `meta` device; it is given what stands in for them.
        weights: Its parameters, of any float type.
        smallest_bytes: Matrices that are smaller in float32 are traced as they are, and so are vectors.
    """

    def __init__(self, model: Any, weights: Mapping[str, torch.Tensor], *, smallest_bytes: int) -> None:
        import torch

        self._model = model
        self._names: dict[int, str] = {}  # of parameters, by the address of what stands in for them
        self.matrices: dict[str, ReadMatrix] = {}  # by their names in the graph
        for name, weight in weights.items():
            if weight.ndim == 2 and min(weight.shape) > 1 and 4 * weight.numel() >= smallest_bytes:
                value = torch.full((len(weight), 1), torch.nan).expand(weight.shape)
                self._names[value.data_ptr()] = name
            else:
                value = weight.detach().float().clone()
            owner, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(owner), leaf, torch.nn.Parameter(value, requires_grad=False))
        model.tie_weights()

    def export(self, config: Any, path: Path, *, part: Any = None) -> None:
        """Write the graph, in which one number stands for each of `matrices`.

        Args:
            config: optimum's, for this model or part.
            path: The file to write.
            part: A module of the model; absent, all of it.

        Raises:
            ExportError: The tracer computes with a matrix.
        """
        import torch
        from optimum.exporters.onnx import export

        self.matrices = {}
        tracer = importlib.import_module(torch.onnx.utils._export.__module__)
        infer_shapes = getattr(torch._C, _INFERENCE)
        with (
            _replaced(tracer, _TRACING, self._noting_matrices(getattr(tracer, _TRACING))),
            _replaced(torch._C, _INFERENCE, self._without_matrices(infer_shapes)),
        ):
            # What optimum calls a fix runs the graph; it mends what no causal model has.
            export(
                model=self._model if part is None else part,
                config=config,
                output=path,
                opset=config.DEFAULT_ONNX_OPSET,
                disable_dynamic_axes_fix=True,
            )

    def _noting_matrices(self, trace: Callable[..., Any]) -> Callable[..., Any]:
        import torch

        def noting(*arguments: Any, **options: Any) -> tuple[Any, dict[str, torch.Tensor], Any]:
            graph, parameters, outputs = trace(*arguments, **options)
            for name, tensor in parameters.items():
                if found := self._read(tensor):
                    self.matrices[name] = found
                    # Each another number, for equal tensors would be stored once.
                    parameters[name] = torch.tensor([float(len(self.matrices))])
                elif tensor.is_floating_point() and tensor.isnan().any():
                    raise ExportError(
                        f"optimum's exporter computes `{name}` from the checkpoint's weights",
                        hint="leave the `onnx-standard` schemes out",
                    )
            return graph, parameters, outputs

        return noting

    def _without_matrices(self, infer: Callable[..., Any]) -> Callable[..., Any]:
        """Return the inference of shapes, which would write each matrix into a message, although it needs none."""

        def without(graph: Any, parameters: Mapping[str, torch.Tensor], opset: int) -> Any:
            return infer(graph, {name: one for name, one in parameters.items() if not self._read(one)}, opset)

        return without

    def _read(self, tensor: torch.Tensor) -> ReadMatrix | None:
        """Return which matrix a tensor of the trace is; None where it is another, or a part of one."""
        name = self._names.get(tensor.data_ptr())
        if name is None:
            return None
        whole = self._model.get_parameter(name)
        for view, is_transposed in ((whole, False), (whole.T, True)):
            if (tensor.shape, tensor.stride()) == (view.shape, view.stride()):
                return ReadMatrix(parameter=name, is_transposed=is_transposed)
        return None


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)
