from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from ammd.export.checkpoint_facts import CheckpointFacts, read_checkpoint_facts
from ammd.export.estimates import disk_bytes, memory_bytes
from ammd.export.schemes import Scheme
from ammd.export.settings import ExportSettings, ImatrixSettings, MixedSettings, OnnxSettings


@pytest.fixture
def facts(tiny_checkpoint: Path) -> CheckpointFacts:
    return read_checkpoint_facts(tiny_checkpoint)


def _disk(facts: CheckpointFacts, *schemes: Scheme, onnx: OnnxSettings | None = None) -> int:
    return disk_bytes(facts, ExportSettings(schemes=schemes, onnx=onnx or OnnxSettings()))


def test_the_quantizers_source_counts_once(facts: CheckpointFacts) -> None:
    both = _disk(facts, Scheme.GGUF_F16, Scheme.GGUF_Q8_0)
    assert _disk(facts, Scheme.GGUF_Q8_0) == both
    assert _disk(facts, Scheme.GGUF_F16) < both


def test_the_embedding_of_an_untied_model_counts(facts: CheckpointFacts) -> None:
    untied = dataclasses.replace(facts, tied_head=False)
    assert _disk(untied, Scheme.ONNX_INT4) - _disk(facts, Scheme.ONNX_INT4) == 4 * facts.embedding_weights


def test_the_builders_float32_graph_counts_once_and_only_where_it_is_written(facts: CheckpointFacts) -> None:
    def more(first: Scheme, *others: Scheme) -> int:
        return _disk(facts, first, *others) - _disk(facts, *others)

    int8 = more(Scheme.ONNX_INT8, Scheme.ONNX_INT4)
    assert more(Scheme.ONNX_INT8, Scheme.ONNX_FP32) - int8 == pytest.approx(5.2 * facts.parameters, abs=1)


def test_the_float32_graph_of_standard_operators_counts_once_and_so_does_its_ort_form(
    facts: CheckpointFacts,
) -> None:
    def weights(*schemes: Scheme, onnx: OnnxSettings | None = None) -> float:
        files = len({*schemes, Scheme.ONNX_STANDARD_FP32})
        return (_disk(facts, *schemes, onnx=onnx) - files * (16 << 20)) / facts.parameters

    fp32, fp16 = Scheme.ONNX_STANDARD_FP32, Scheme.ONNX_STANDARD_FP16
    assert weights(fp32) == pytest.approx(4, abs=1e-3)
    assert weights(fp16) == weights(fp16, fp32) == pytest.approx(6, abs=1e-3)
    assert weights(fp32, onnx=OnnxSettings(ort_format=True)) == pytest.approx(8, abs=1e-3)


def test_memory_follows_from_the_largest_tensor_and_not_from_the_model() -> None:
    facts = CheckpointFacts(
        parameters=10**9,
        embedding_weights=10**8,
        largest_matrix_weights=10**8,
        tied_head=True,
        row_weights={},
    )
    deeper = dataclasses.replace(facts, parameters=2 * 10**9)
    gguf = ExportSettings(schemes=(Scheme.GGUF_Q4_K_M,))
    standard = ExportSettings(schemes=(Scheme.ONNX_STANDARD_INT8,))
    assert memory_bytes(facts, gguf) == memory_bytes(deeper, gguf)
    assert memory_bytes(facts, standard) == memory_bytes(deeper, standard)
    wider = dataclasses.replace(facts, largest_matrix_weights=2 * 10**8)
    assert memory_bytes(wider, gguf) - memory_bytes(facts, gguf) == 6 * 10**8
    matrix = ExportSettings(schemes=(Scheme.GGUF_Q4_K_M,), imatrix=ImatrixSettings())
    mixture = ExportSettings(schemes=(Scheme.GGUF_MIXED,), mixed=MixedSettings(bits=4.5))
    assert memory_bytes(facts, gguf) < memory_bytes(facts, matrix) < memory_bytes(facts, mixture)
