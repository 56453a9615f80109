"""A small random model of each family, with a tokenizer of its kind, through GGUF and ONNX and all proofs.

`conftest.FAMILIES` has the families, and how their checkpoints are built.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ammd.export import gguf_converter, to_onnx
from ammd.export.quantize_gguf import quantize_gguf
from ammd.export.to_gguf import write_gguf
from ammd.export.to_onnx import write_onnx
from ammd.pipeline.cli import main
from ammd.runtime import reference, verify
from ammd.runtime.artifact_ref import ArtifactRef
from ammd.runtime.child import call
from ammd.runtime.engine import open_engine
from ammd.runtime.settings import VerifySettings
from ammd.runtime.verify import VerifyInputs, measure_files

needs_new_builder = pytest.mark.skipif(
    to_onnx._release("onnxruntime-genai") < to_onnx._FIRST_WITH_NEW_OPTIONS,
    reason="older builders let each sixth layer of Gemma 3 see the whole text and no other",
)
SMALL = VerifySettings(texts=4, greedy_prompts=2, greedy_tokens=12)


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    texts = [
        f"Name {n} hats of the quick brown fox, they'll agree on 你好 number {n}." for n in (12, 31, 7, 300)
    ]
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    return path


@pytest.fixture
def reference_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the reference in this process, which has torch already; files are measured in children as ever."""

    def call_or_build(target: str, request: Mapping[str, Any]) -> Any:
        return reference.build(request) if target == "reference:build" else call(target, request)

    monkeypatch.setattr(verify, "call", call_or_build)


@pytest.mark.parametrize(
    ("processor", "adds"),
    [
        (None, False),
        ({"type": "ByteLevel"}, False),
        ({"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A"}}]}, False),
        ({"type": "TemplateProcessing", "single": [{"SpecialToken": {}}, {"Sequence": {}}]}, True),
        ({"type": "Sequence", "processors": [{"type": "ByteLevel"}, {"type": "RobertaProcessing"}]}, True),
        ({"type": "Sequence", "processors": [{"type": "ByteLevel"}]}, False),
    ],
)
def test_a_tokenizers_last_step_says_whether_it_adds_tokens(processor: Any, adds: bool) -> None:
    assert gguf_converter._adds_tokens(processor) is adds


@pytest.mark.real
@pytest.mark.usefixtures("reference_here")
def test_a_family_goes_to_gguf_and_onnx_and_passes_the_proofs(
    build_family: Callable[..., Path], tmp_path: Path, prompts: Path, family: Any
) -> None:
    checkpoint = build_family(family, tmp_path / "checkpoint")
    write_gguf(checkpoint, tmp_path / "student-f16.gguf", name="tiny")
    write_onnx(checkpoint, tmp_path / "onnx-fp32", precision="fp32")
    artifacts = tuple(
        ArtifactRef(name=name, path=tmp_path / file)
        for name, file in {"gguf-f16": "student-f16.gguf", "onnx-fp32": "onnx-fp32"}.items()
    )
    inputs = VerifyInputs(checkpoint=checkpoint, heldout=prompts, artifacts=artifacts)
    records = measure_files(inputs, SMALL, tmp_path)
    for name, record in records.items():
        assert record["kl_nats"] < record["kl_limit_nats"], name
        assert record["chats"] == (2 if family.template == "mistral" else 4)  # which has no system turns
        assert len(record["end_token_ids"]) >= len(family.ends)
        assert bool(record["notes"]) == (family.words == "qwen2")
    assert records["onnx-fp32"]["greedy_equal"] == 2


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("mistral", {"sliding_window": 8}),
        ("smollm 3", {"no_rope_layers": [1, 0, 1, 1]}),
        pytest.param(
            "gemma 3",
            {
                "hidden_size": 128,  # whose root is no short decimal
                "query_pre_attn_scalar": 100,
                "layer_types": ["sliding_attention", "full_attention"] * 3,
                "rope_parameters": {
                    "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                },
            },
            marks=needs_new_builder,
        ),
    ],
)
def test_what_no_gguf_can_say_is_computed_by_onnx_files(
    build_family: Callable[..., Path],
    families: Mapping[str, Any],
    tmp_path: Path,
    name: str,
    settings: dict[str, Any],
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    checkpoint = build_family(families[name], tmp_path / "checkpoint", **settings)
    write_onnx(checkpoint, tmp_path / "onnx", precision="fp32")
    ids = list(range(270, 320))
    with open_engine(tmp_path / "onnx", threads=1, context_tokens=64) as engine:
        found = np.concatenate(list(engine.logits(ids)))
    with torch.inference_mode():
        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
        expected = model(torch.tensor([ids])).logits[0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-3)  # of order 1; sums in another order


@pytest.mark.real
def test_a_quantized_file_of_a_sentencepiece_family_is_proven_from_the_command_line(
    build_family: Callable[..., Path],
    families: Mapping[str, Any],
    tmp_path: Path,
    prompts: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    checkpoint = build_family(families["gemma 3"], tmp_path / "checkpoint")
    write_gguf(checkpoint, tmp_path / "student-f16.gguf", name="tiny")
    file = tmp_path / "student-q8_0.gguf"
    quantize_gguf(tmp_path / "student-f16.gguf", file, type_name="Q8_0")
    options = ["--against", checkpoint, "--heldout", prompts, "--set", "greedy_tokens=12", "--json"]
    monkeypatch.setattr(sys, "argv", ["ammd", "verify", *map(str, [file, *options])])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 0
    record = json.loads(capfd.readouterr().out)["parity"]["gguf-q8_0"]
    assert 1e-5 < record["kl_nats"] < record["kl_limit_nats"] == 1e-2
