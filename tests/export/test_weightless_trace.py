"""Traces without weights, compared with optimum's own with them."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import onnx
import pytest

from ammd.errors import ExportError
from ammd.export import standard_exporter
from ammd.export.optimum_exporter import missing_exporter
from ammd.export.standard_graph import GRAPH
from ammd.export.weightless_trace import WeightlessTrace

pytestmark = [
    pytest.mark.skipif(
        missing_exporter() is not None, reason="optimum is not installed, or not for this transformers"
    ),
    pytest.mark.filterwarnings("ignore"),  # the tracer's
]
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {"tie_word_embeddings": True},
    "Qwen2": {"tie_word_embeddings": False},  # with biases
    "Gemma3": {"tie_word_embeddings": True, "head_dim": 16},  # computes with the weights of its norms
    "Phi3": {"tie_word_embeddings": False},  # three matrices in one
}


def _model(family: str, special: dict[str, Any]) -> Any:
    import torch
    import transformers

    settings = {
        "vocab_size": 300,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "pad_token_id": 2,
        "initializer_range": 0.2,
    }
    text = "Text" if family == "Gemma3" else ""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = getattr(transformers, f"{family}{text}Config")(**(settings | special))
        model = getattr(transformers, f"{family}ForCausalLM")(config)
    for parameter in model.parameters():  # norms are all ones otherwise, and stored once for it
        parameter.data += 0.1 * torch.randn(
            parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())
        )
    return model.eval()


def _config(model: Any) -> Any:
    from optimum.exporters.tasks import TasksManager

    importlib.import_module("optimum.exporters.onnx.model_configs")  # makes its models known to the manager

    build = TasksManager.get_exporter_config_constructor(
        exporter="onnx", model=model, task="text-generation-with-past", library_name="transformers"
    )
    return build(model.config, use_past=True, use_past_in_inputs=True)


def _weightless(model: Any) -> tuple[WeightlessTrace, dict[str, Any]]:
    import torch
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        empty = type(model)(model.config).eval()
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    assert all(parameter.device == torch.device("meta") for parameter in empty.parameters())
    return WeightlessTrace(empty, weights, smallest_bytes=991), weights


@pytest.mark.parametrize("name", FAMILIES)
def test_the_graph_is_the_one_that_optimum_traces_with_the_weights(name: str, tmp_path: Path) -> None:
    from optimum.exporters.onnx import export

    model = _model(name, FAMILIES[name])
    trace, weights = _weightless(model)
    trace.export(_config(model), tmp_path / "ours.onnx")
    ours = onnx.load(tmp_path / "ours.onnx")
    assert len(trace.matrices) >= 2 * 4 + 2
    assert sum(len(tensor.raw_data) for tensor in ours.graph.initializer) < 20_000
    contents = standard_exporter.put_matrices(ours.graph, trace.matrices, weights)
    for tensor in ours.graph.initializer:
        if tensor.name in contents:
            tensor.raw_data = b"".join(contents[tensor.name]())
    config = _config(model)
    export(model=model, config=config, output=tmp_path / "theirs.onnx", opset=config.DEFAULT_ONNX_OPSET)
    theirs = onnx.load(tmp_path / "theirs.onnx")
    for one in (ours, theirs):
        standard_exporter.strip_remarks(one)
    assert ours == theirs


def test_a_graph_that_computes_with_a_matrix_is_refused(tmp_path: Path) -> None:
    import torch

    trace, _ = _weightless(_model("Llama", FAMILIES["Llama"]))
    head = trace._model.lm_head
    head.forward = lambda states: torch.nn.functional.linear(states, 2 * head.weight)
    with pytest.raises(ExportError, match=r"computes `.+` from the checkpoint's weights"):
        trace.export(_config(trace._model), tmp_path / GRAPH)
