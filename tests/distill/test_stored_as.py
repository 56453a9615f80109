"""What training rounds against what the export stage writes: read back from the files by code that is not ours."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ammd.distill import stored_as
from ammd.distill.checkpoint import (
    copy_in_dtype,
    load_model,
    load_tokenizer,
    save_checkpoint,
    save_gguf_as_checkpoint,
)
from ammd.distill.settings import DistillSettings
from ammd.distill.stored_as import roundings_of
from ammd.errors import DistillError
from ammd.export import to_onnx
from ammd.export.gguf_contents import read_matrices
from ammd.export.quantize_gguf import quantize_gguf
from ammd.export.schemes import Scheme
from ammd.export.settings import OnnxSettings
from ammd.export.to_gguf import write_gguf
from ammd.export.to_onnx import write_onnx


@pytest.fixture(autouse=True)
def known_builder(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is rounded does not depend on the builder that is installed; an older one is only refused."""
    monkeypatch.setattr(stored_as, "_builder_version", lambda: "0.18.0")


@dataclass(frozen=True)
class Student:
    """A student as training leaves it, float32, and the checkpoint that is exported."""

    model: Any
    folder: Path


@pytest.fixture(
    scope="module",
    params=["llama", *(pytest.param(kind, marks=pytest.mark.real) for kind in ("mistral", "qwen2", "qwen3"))],
)
def student(
    request: pytest.FixtureRequest, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Student:
    is_wide = request.param == "mistral"  # enough for Q6_K
    model = random_model(request.param, hidden=256 if is_wide else 64, layers=8, tied=not is_wide)
    folder = tmp_path_factory.mktemp("saved") / "student"
    save_checkpoint(copy_in_dtype(model, torch.bfloat16), load_tokenizer(tiny_checkpoint), folder)
    return Student(model, folder)


def random_model(kind: str = "llama", *, hidden: int = 64, layers: int = 2, tied: bool = True) -> Any:
    """Return a model with the tiny checkpoint's vocabulary and no two weights alike."""
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    config = AutoConfig.for_model(
        kind,
        vocab_size=268,
        hidden_size=hidden,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        # transformers reads a GGUF's qwen3 with heads of 128, whatever the file says.
        head_dim=128 if kind == "qwen3" else hidden // 4,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
    )
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    config.update(ids)
    generator = torch.Generator().manual_seed(1)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((parameter == 1) + 0.05 * torch.randn(parameter.shape, generator=generator))
    model.generation_config = GenerationConfig(**ids)
    return model


def rounded(student, scheme: str) -> dict[str, torch.Tensor]:
    """Return each rounded weight by its name."""
    roundings = roundings_of(student, scheme)
    with torch.no_grad():
        return {
            name: roundings[parameter](parameter)
            for name, parameter in student.named_parameters()
            if parameter in roundings
        }


@pytest.mark.real
@pytest.mark.parametrize("scheme", ["gguf-q8_0", "gguf-q4_0"])
def test_a_gguf_holds_what_training_rounds_to(student: Student, tmp_path: Path, scheme: str) -> None:
    write_gguf(student.folder, tmp_path / "f16.gguf", name="tiny")
    quantize_gguf(tmp_path / "f16.gguf", tmp_path / "q.gguf", type_name=scheme.removeprefix("gguf-").upper())
    save_gguf_as_checkpoint(tmp_path / "q.gguf", tmp_path / "read")
    held = dict(load_model(tmp_path / "read", dtype=torch.float32).named_parameters())
    expected = rounded(student.model, scheme)
    finer = {str(one.name) for one in read_matrices(tmp_path / "q.gguf") if one.tensor_type.name == "Q6_K"}
    kept = {name for name, weights in held.items() if weights.ndim == 2} - set(expected)
    is_q6_k = scheme == "gguf-q4_0" and student.model.config.hidden_size == 256
    assert (finer, kept) == (({"output.weight"}, {"lm_head.weight"}) if is_q6_k else (set(), set()))
    for name, weights in expected.items():
        assert torch.equal(held[name], weights), name


@pytest.mark.skipif(
    to_onnx._release("onnxruntime-genai") < to_onnx._FIRST_WITH_NEW_OPTIONS,
    reason="an older builder stores another mix",
)
def test_an_onnx_model_holds_what_training_rounds_to(student: Student, tmp_path: Path) -> None:
    write_onnx(student.folder, tmp_path / "onnx")
    held, bits = read_nbits(tmp_path / "onnx" / "model.onnx")
    expected = rounded(student.model, "onnx-int4")
    head = "model.embed_tokens.weight" if student.model.config.tie_word_embeddings else "lm_head.weight"
    seen = set()
    for node, weights in held.items():
        names = names_of(node, head=head)
        assert np.array_equal(weights, torch.cat([expected[name] for name in names]).numpy()), node
        seen.update(names)
    assert seen == set(expected)
    assert set(bits.values()) == {4, 8}


def read_nbits(path: Path) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Dequantize every MatMulNBits node [outputs, inputs] as the operator's specification says."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(path).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    held, widths = {}, {}
    for node in graph.node:
        if node.op_type != "MatMulNBits":
            continue
        facts = {attribute.name: attribute.i for attribute in node.attribute}
        _, packed, scale, zero_point = (
            numpy_helper.to_array(tensors[n]) if n in tensors else None for n in node.input
        )
        if facts["bits"] == 4:
            packed, zero_point = (
                np.stack([t & 15, t >> 4], axis=-1).reshape(*t.shape[:-1], -1) for t in (packed, zero_point)
            )
        blocks = facts["K"] // facts["block_size"]
        steps = packed.astype(np.float32) - zero_point[:, :blocks, None].astype(np.float32)
        held[node.name] = (steps * scale.reshape(-1, blocks, 1)).reshape(facts["N"], facts["K"])
        widths[node.name] = facts["bits"]
    return held, widths


def names_of(node: str, *, head: str) -> list[str]:
    """Return the parameters that a node's rows are, in their order."""
    if node.startswith("/lm_head"):
        return [head]
    layer, part, projection = re.fullmatch(
        r"/model/layers\.(\d+)/(attn|mlp)/(\w+)_proj/MatMul_Q\d", node
    ).groups()
    module = {"attn": "self_attn", "mlp": "mlp"}[part]
    return [
        f"model.layers.{layer}.{module}.{one}_proj.weight"
        for one in ("qkv" if projection == "qkv" else [projection])
    ]


def test_rounding_knows_only_what_is_saved() -> None:
    """The checkpoint is bfloat16: a master and its saved value become the same."""
    student = random_model()
    saved = copy_in_dtype(copy_in_dtype(student, torch.bfloat16), torch.float32)
    for scheme in ("gguf-q8_0", "gguf-q4_0", "onnx-int4"):
        again = rounded(saved, scheme)
        assert all(torch.equal(again[name], weights) for name, weights in rounded(student, scheme).items())


@pytest.mark.parametrize(
    ("hidden", "tied", "floats"),
    [
        (256, True, {"model.embed_tokens.weight"}),  # one tensor, Q6_K
        (256, False, {"lm_head.weight"}),
        (64, False, set()),
        (48, True, {"model.embed_tokens.weight", "q", "k", "v", "o", "gate", "up"}),  # stays F16
    ],
)
def test_a_q4_0_head_is_rounded_only_where_it_is_not_q6_k(hidden: int, tied: bool, floats: set[str]) -> None:
    model = random_model(hidden=hidden, layers=1, tied=tied)
    names = {name for name, parameter in model.named_parameters() if parameter.ndim == 2}
    kept = names - set(rounded(model, "gguf-q4_0"))
    assert {re.sub(r".*\.(\w+)_proj\.weight", r"\1", name) for name in kept} == floats


def test_an_embedding_of_its_own_stays_float_in_onnx() -> None:
    names = set(rounded(random_model(tied=False), "onnx-int4"))
    assert "lm_head.weight" in names
    assert "model.embed_tokens.weight" not in names


def test_without_a_scheme_nothing_is_rounded() -> None:
    assert roundings_of(random_model(), None) == {}


def test_a_model_whose_files_are_not_known_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    student = random_model()
    monkeypatch.setattr(student.config, "model_type", "falcon")
    with pytest.raises(DistillError, match="does not know how a model of type `falcon` is stored") as caught:
        roundings_of(student, "gguf-q8_0")
    assert "llama" in caught.value.hint


def test_an_older_builder_is_refused_where_the_export_stage_gives_it_other_options(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    student = random_model()
    monkeypatch.setattr(stored_as, "_builder_version", lambda: "0.17.9")
    monkeypatch.setattr(to_onnx, "_release", lambda _: (0, 17))
    assert "int4_block_size=32" in to_onnx.builder_options("int4", OnnxSettings())
    with pytest.raises(DistillError, match=r"onnxruntime-genai `0\.17\.9` stores"):
        roundings_of(student, "onnx-int4")
    assert roundings_of(student, "gguf-q4_0")


def test_schemes_are_the_export_stages() -> None:
    for scheme in ("gguf-q4_0", "gguf-q8_0", "onnx-int4"):
        assert DistillSettings(quantize_as=scheme).quantize_as == Scheme(scheme).value
