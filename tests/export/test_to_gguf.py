"""The converter is llama.cpp's; these tests hold what it writes against the checkpoint's own weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ammd.errors import ExportError
from ammd.export import to_gguf
from ammd.export.gguf_contents import read_contents
from ammd.export.quantize_gguf import quantize_gguf
from ammd.export.to_gguf import write_gguf

LAYERS, HEADS, KV_HEADS, HEAD_SIZE = 4, 4, 2, 16
MATRICES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}


@pytest.fixture(scope="module")
def f16(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny-f16.gguf"
    write_gguf(tiny_checkpoint, path, name="tiny")
    return path


def _weights(checkpoint: Path) -> dict[str, Any]:
    from safetensors.numpy import load_file

    return load_file(checkpoint / "model.safetensors")


def _stored(path: Path) -> dict[str, Any]:
    """Return each tensor of a GGUF by name, dequantized to float32 [rows, columns]."""
    from gguf import GGUFReader, quants

    tensors = GGUFReader(path).tensors
    return {str(t.name): quants.dequantize(t.data, t.tensor_type).astype(np.float32) for t in tensors}


def _interleaved(matrix: Any, heads: int) -> Any:
    """Row 2j + k of a head in a GGUF is row k * (head size / 2) + j of the checkpoint, k being 0 or 1."""
    half = HEAD_SIZE // 2
    rows = [h * HEAD_SIZE + k * half + j for h in range(heads) for j in range(half) for k in (0, 1)]
    return matrix[rows]


def _expected(checkpoint: Path) -> dict[str, Any]:
    weights = _weights(checkpoint)
    expected = {
        "token_embd.weight": weights["model.embed_tokens.weight"],
        "output_norm.weight": weights["model.norm.weight"],
    }
    for layer in range(LAYERS):
        for source, target in (MATRICES | NORMS).items():
            matrix = weights[f"model.layers.{layer}.{source}.weight"]
            if target in ("attn_q", "attn_k"):
                matrix = _interleaved(matrix, HEADS if target == "attn_q" else KV_HEADS)
            expected[f"blk.{layer}.{target}.weight"] = matrix
    return expected


@pytest.mark.real
def test_every_weight_is_there_and_nothing_else(f16: Path, tiny_checkpoint: Path) -> None:
    expected, stored = _expected(tiny_checkpoint), _stored(f16)
    assert set(stored) == set(expected)
    for name, matrix in expected.items():
        assert stored[name].shape == matrix.shape, name
        # F16 keeps 11 bits: half a unit in the last place, or half the smallest step near zero.
        np.testing.assert_allclose(stored[name], matrix, rtol=2**-11, atol=2**-25, err_msg=name)


@pytest.mark.real
def test_shapes_are_stored_columns_first(f16: Path) -> None:
    from gguf import GGUFReader

    shapes = {str(tensor.name): list(tensor.shape) for tensor in GGUFReader(f16).tensors}
    assert shapes["blk.0.attn_k.weight"] == [64, KV_HEADS * HEAD_SIZE]
    assert shapes["blk.0.ffn_down.weight"] == [128, 64]


@pytest.mark.real
def test_metadata_is_the_checkpoints(f16: Path, tiny_checkpoint: Path) -> None:
    from gguf import GGUFReader

    fields = GGUFReader(f16).fields
    found = {name: field.contents() for name, field in fields.items()}
    config = json.loads((tiny_checkpoint / "config.json").read_text())
    assert found["general.name"] == "tiny"
    assert found["llama.block_count"] == LAYERS
    assert found["llama.attention.head_count_kv"] == KV_HEADS
    assert found["llama.context_length"] == config["max_position_embeddings"]
    assert len(found["tokenizer.ggml.tokens"]) == config["vocab_size"]
    assert found["tokenizer.ggml.eos_token_id"] == 2
    assert "<|im_start|>" in found["tokenizer.chat_template"]


@pytest.mark.real
def test_unknown_hash_is_named_by_the_rule(f16: Path) -> None:
    from gguf import GGUFReader

    # The tiny vocabulary is in no list of hashes; its rule is SmolLM's.
    assert GGUFReader(f16).fields["tokenizer.ggml.pre"].contents() == "smollm"


@pytest.mark.real
def test_unknown_rule_is_refused_with_the_converters_reason(tiny_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))
    path = checkpoint / "tokenizer.json"
    document = json.loads(path.read_text())
    document["pre_tokenizer"]["pretokenizers"][0]["individual_digits"] = False
    path.write_text(json.dumps(document))
    with pytest.raises(ExportError, match=r"BPE pre-tokenizer was not recognized"):
        write_gguf(checkpoint, tmp_path / "x.gguf", name="x")


@pytest.mark.real
def test_unknown_architecture_is_refused_with_its_name(tiny_checkpoint: Path, tmp_path: Path) -> None:
    checkpoint = Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))
    path = checkpoint / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"architectures": ["NoSuchModel"]}))
    with pytest.raises(ExportError, match="Model NoSuchModel is not supported"):
        write_gguf(checkpoint, tmp_path / "x.gguf", name="x")


@pytest.mark.real
def test_a_narrow_student_is_converted_with_its_own_sizes(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """llama.cpp must take the head size from the file: hidden size by heads would be 32."""
    import torch
    from gguf import GGUFReader

    from ammd.distill.checkpoint import load_model, load_tokenizer, save_checkpoint
    from ammd.distill.width import cut_channels, cut_groups
    from ammd.runtime.engine import open_engine

    model = load_model(tiny_checkpoint, dtype=torch.float32)
    cut_groups(model, [torch.tensor([layer % KV_HEADS]) for layer in range(LAYERS)])
    cut_channels(model, [torch.arange(layer, 96 + layer) for layer in range(LAYERS)])
    save_checkpoint(model, load_tokenizer(tiny_checkpoint), tmp_path / "narrow")
    write_gguf(tmp_path / "narrow", tmp_path / "narrow.gguf", name="narrow")
    fields = GGUFReader(tmp_path / "narrow.gguf").fields
    assert fields["llama.attention.key_length"].contents() == HEAD_SIZE
    assert fields["llama.attention.head_count"].contents() == HEADS // KV_HEADS
    assert fields["llama.feed_forward_length"].contents() == 96
    ids = [1, 20, 30, 40, 50]
    with open_engine(tmp_path / "narrow.gguf", threads=1, context_tokens=16) as engine:
        found = np.concatenate(list(engine.logits(ids)))
    with torch.inference_mode():
        expected = model(input_ids=torch.tensor([ids])).logits[0].numpy()
    # F16 weights and key-value cache; logits are of order 1.
    np.testing.assert_allclose(found, expected, atol=5e-3)


@pytest.mark.real
@pytest.mark.parametrize(
    ("type_name", "step"),
    # Steps of a block, relative to its largest weight: 1/127 for Q8_0; 1/16 for Q5_0, where 64-wide rows end; 1/8.
    [("Q8_0", 1 / 127), ("Q4_K_M", 1 / 16), ("Q4_0", 1 / 8)],
)
def test_quantized_weights_stay_within_half_a_step(
    f16: Path, tiny_checkpoint: Path, tmp_path: Path, type_name: str, step: float
) -> None:
    target = tmp_path / "q.gguf"
    quantize_gguf(f16, target, type_name=type_name)
    stored = _stored(target)
    expected = _expected(tiny_checkpoint)
    assert set(stored) == set(expected)
    for name, matrix in expected.items():
        if matrix.ndim == 1:
            np.testing.assert_array_equal(stored[name], matrix, err_msg=name)
            continue
        blocks = matrix.reshape(-1, 32)
        largest = np.abs(blocks).max(axis=1, keepdims=True)
        error = np.abs(stored[name].reshape(-1, 32) - blocks)
        # Half a step, or a whole one at the end of Q5_0's and Q4_0's range, which has one negative step more;
        # the scale is itself a half-float (2**-10 of the weight).
        assert (error <= largest * (step + 2**-10)).all(), name


@pytest.mark.real
def test_narrow_rows_fall_back_and_are_listed(f16: Path, tmp_path: Path) -> None:
    meant = quantize_gguf(f16, tmp_path / "q4.gguf", type_name="Q4_K_M")
    fallbacks = read_contents(tmp_path / "q4.gguf", meant=meant, head="Q6_K").fallbacks
    assert len(fallbacks) == LAYERS * len(MATRICES) + 1
    assert {(entry.asked, entry.stored) for entry in fallbacks} == {("Q4_K", "Q5_0"), ("Q6_K", "Q8_0")}
    assert quantize_gguf(f16, tmp_path / "q8.gguf", type_name="Q8_0") == {}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["q4.gguf", "q8.gguf"]


def test_quantizer_quotes_llama_cpps_reason(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"not a gguf file")
    with pytest.raises(ExportError, match=r"cannot quantize `bad\.gguf` to Q8_0: .*\n.*") as caught:
        quantize_gguf(tmp_path / "bad.gguf", tmp_path / "out.gguf", type_name="Q8_0")
    assert "magic" in str(caught.value)


def test_weight_that_f16_cannot_hold_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gguf import GGUFWriter

    writer = GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_tensor("blk.0.ffn_up.weight", np.full((2, 32), np.inf, dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_text("{}")
    monkeypatch.setattr(to_gguf, "source_tree", lambda **_: tmp_path)
    monkeypatch.setattr(to_gguf, "run_module", lambda *_, **__: None)
    with pytest.raises(ExportError, match=r"tensor `blk\.0\.ffn_up\.weight` holds a weight that F16 cannot"):
        write_gguf(tmp_path, tmp_path / "a.gguf", name="a")


@pytest.mark.real
def test_smollm2s_tokenizer_is_recognised(smollm2_checkpoint: Path, tmp_path: Path) -> None:
    from gguf import GGUFReader

    write_gguf(smollm2_checkpoint, tmp_path / "smollm2.gguf", name="smollm2")
    fields = GGUFReader(tmp_path / "smollm2.gguf").fields
    assert fields["tokenizer.ggml.pre"].contents() == "smollm"
    assert not fields["tokenizer.ggml.add_bos_token"].contents()


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_what_is_not_finite_is_seen_by_its_bits(dtype: type[np.floating]) -> None:
    largest = np.finfo(dtype).max
    sound = np.array([0.0, -0.0, 1.0, -largest, largest, np.finfo(dtype).tiny], dtype)
    assert to_gguf._is_finite(sound)
    for bad in (np.inf, -np.inf, np.nan):
        assert not to_gguf._is_finite(np.append(sound, np.array(bad, dtype)))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_a_weight_that_is_not_finite_is_found_wherever_it_lies(dtype: type) -> None:
    weights = np.ones((3, 100_000), dtype=dtype)  # more than one piece
    assert to_gguf._is_finite(weights)
    for place, value in ((0, np.inf), (150_000, np.nan), (-1, -np.inf)):
        spoiled = weights.copy()
        spoiled.reshape(-1)[place] = value
        assert not to_gguf._is_finite(spoiled)
