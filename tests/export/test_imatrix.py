"""The importance matrix: its file, and what it is measured from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ammd.errors import DataError, ExportError
from ammd.export.activations import sum_squared_inputs, tensor_names
from ammd.export.calibration import read_pieces
from ammd.export.imatrix import Imatrix, read_imatrix, write_imatrix
from ammd.export.measure_imatrix import measure_imatrix
from ammd.export.quantize_gguf import quantize_gguf
from ammd.export.schemes import Scheme
from ammd.export.settings import ExportSettings, ImatrixSettings
from ammd.export.stage import ExportInputs, run
from ammd.export.to_gguf import write_gguf

IMATRIX = Imatrix(
    sums={"blk.0.ffn_up.weight": np.array([1, 4], np.float32), "moe": np.array([2, 4, 0, 0], np.float32)},
    tokens={"blk.0.ffn_up.weight": np.array([2], np.float32), "moe": np.array([2, 0], np.float32)},
    datasets=("sha256:0",),
    chunk_tokens=512,
    chunks=1,
)


def test_means_are_per_token_and_an_unused_expert_counts_alike() -> None:
    means = IMATRIX.means()
    np.testing.assert_array_equal(means["blk.0.ffn_up.weight"], [0.5, 2])
    np.testing.assert_array_equal(means["moe"], [1, 2, 1, 1])


def test_file_has_the_names_and_shapes_of_llama_cpps_own(tmp_path: Path) -> None:
    from gguf import GGUFReader

    write_imatrix(tmp_path / "i.gguf", IMATRIX)
    reader = GGUFReader(tmp_path / "i.gguf")
    shapes = {str(tensor.name): [int(size) for size in tensor.shape] for tensor in reader.tensors}
    assert shapes == {
        "blk.0.ffn_up.weight.in_sum2": [2, 1],
        "blk.0.ffn_up.weight.counts": [1, 1],
        "moe.in_sum2": [2, 2],
        "moe.counts": [1, 2],
    }
    assert reader.fields["general.type"].contents() == "imatrix"
    assert "general.architecture" not in reader.fields
    found = read_imatrix(tmp_path / "i.gguf")
    assert (found.datasets, found.chunk_tokens, found.chunks) == (("sha256:0",), 512, 1)
    for name, sums in IMATRIX.sums.items():
        np.testing.assert_array_equal(found.sums[name], sums)
        np.testing.assert_array_equal(found.tokens[name], IMATRIX.tokens[name])


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    with pytest.raises(ExportError, match="is not an importance matrix"):
        read_imatrix(tmp_path / "a.gguf")


def test_sums_are_those_of_the_inputs_without_padding(tiny_checkpoint: Path) -> None:
    """Against a plain forward pass of each text by itself, with inputs recorded by hand."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32).eval()
    pieces = [[1, 20, 30], [1, 40, 50, 60, 70, 80, 90], [5]]
    module = model.model.layers[1].mlp.down_proj
    inputs: list[torch.Tensor] = []
    hook = module.register_forward_pre_hook(lambda _module, given: inputs.append(given[0][0]))
    with torch.inference_mode():
        for ids in pieces:
            model(torch.tensor([ids]))
    hook.remove()
    expected = torch.cat(inputs).double().square().sum(0).float().numpy()
    found = sum_squared_inputs(model, pieces, {"model.layers.1.mlp.down_proj": "blk.1.ffn_down.weight"})
    np.testing.assert_allclose(found["blk.1.ffn_down.weight"], expected, rtol=1e-5)


@pytest.mark.real
def test_measured_matrix_covers_every_layer_and_changes_what_is_written(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    write_gguf(tiny_checkpoint, tmp_path / "f16.gguf", name="tiny")
    rows = [{"prompt": "Hi", "response": "the cat"}, {"prompt": "Why is it so?"}]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("one.gguf", "two.gguf"):
        measure_imatrix(
            tiny_checkpoint,
            tmp_path / name,
            gguf=tmp_path / "f16.gguf",
            texts=[tmp_path / "texts.jsonl"],
            max_tokens=1000,
        )
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "two.gguf").read_bytes()
    found = read_imatrix(tmp_path / "one.gguf")
    kinds = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    assert set(found.sums) == {f"blk.{layer}.{kind}.weight" for layer in range(4) for kind in kinds}
    np.testing.assert_array_equal(found.sums["blk.2.attn_q.weight"], found.sums["blk.2.attn_v.weight"])
    quantize_gguf(tmp_path / "f16.gguf", tmp_path / "plain.gguf", type_name="Q4_0")
    quantize_gguf(
        tmp_path / "f16.gguf", tmp_path / "with.gguf", type_name="Q4_0", imatrix=tmp_path / "one.gguf"
    )
    plain, weighted = ((tmp_path / name).read_bytes() for name in ("plain.gguf", "with.gguf"))
    assert plain[-4096:] != weighted[-4096:]


def test_a_matrix_that_is_there_is_taken_and_another_file_refused(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    write_imatrix(tmp_path / "given.gguf", IMATRIX)
    settings = ExportSettings(schemes=(Scheme.GGUF_Q4_0,), imatrix=ImatrixSettings())
    (tmp_path / "out").mkdir()
    inputs = ExportInputs(checkpoint=tiny_checkpoint, imatrix=tiny_checkpoint / "config.json")
    with pytest.raises(ExportError, match=r"config\.json` is not an importance matrix"):
        run(inputs, settings, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    short = Imatrix(
        sums={"blk.0.ffn_up.weight": np.ones(64, np.float32)},
        tokens={"blk.0.ffn_up.weight": np.ones(1, np.float32)},
        datasets=("theirs",),
        chunk_tokens=512,
        chunks=3,
    )
    write_imatrix(tmp_path / "given.gguf", short)
    results = run(
        ExportInputs(checkpoint=tiny_checkpoint, imatrix=tmp_path / "given.gguf"), settings, tmp_path / "out"
    )
    assert results["imatrix"]["datasets"] == ["theirs"]
    from gguf import GGUFReader

    fields = GGUFReader(tmp_path / "out" / "student-q4_0.gguf").fields
    assert fields["quantize.imatrix.dataset"].contents() == "theirs"
    assert fields["quantize.imatrix.chunks_count"].contents() == 3
    assert fields["quantize.imatrix.entries_count"].contents() == 1


def test_texts_that_cannot_be_read_are_named_in_one_line(tiny_checkpoint: Path, tmp_path: Path) -> None:
    write_gguf(tiny_checkpoint, tmp_path / "f16.gguf", name="tiny")
    (tmp_path / "bad.jsonl").write_text('{"prompt": "Hi"}\nnot json\n')
    with pytest.raises(ExportError, match=r"^`.*bad\.jsonl` line 2 is not JSON: [^\n]*$"):
        measure_imatrix(
            tiny_checkpoint,
            tmp_path / "i.gguf",
            gguf=tmp_path / "f16.gguf",
            texts=[tmp_path / "bad.jsonl"],
            max_tokens=10,
        )


def test_modules_without_a_tensor_are_left_out(tiny_checkpoint: Path, tmp_path: Path) -> None:
    write_gguf(tiny_checkpoint, tmp_path / "f16.gguf", name="tiny")
    names = tensor_names(["model.layers.0.mlp.up_proj", "lm_head", "else"], tmp_path / "f16.gguf")
    assert names == {"model.layers.0.mlp.up_proj": "blk.0.ffn_up.weight"}
    with pytest.raises(ExportError, match="no matrix of the checkpoint has a name of `llama`"):
        tensor_names(["else"], tmp_path / "f16.gguf")


def test_pieces_come_from_the_front_until_there_are_enough(tiny_checkpoint: Path, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(tiny_checkpoint)
    (tmp_path / "plain.txt").write_text("ab" * 600)
    (tmp_path / "chats.jsonl").write_text(json.dumps({"prompt": "Hi", "response": "Yes"}) + "\n")
    paths = [tmp_path / "chats.jsonl", tmp_path / "plain.txt"]
    pieces = read_pieces(paths, tokenizer, max_tokens=800, context_tokens=512)
    chat = tokenizer.decode(pieces[0])
    assert chat == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYes<|im_end|>"
    assert [len(piece) for piece in pieces[1:]] == [512, 800 - 512 - len(pieces[0])]
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(DataError, match="hold no text to measure on"):
        read_pieces([tmp_path / "empty.txt"], tokenizer, max_tokens=9, context_tokens=9)
    with pytest.raises(DataError, match="cannot read"):
        read_pieces([tmp_path / "none.txt"], tokenizer, max_tokens=9, context_tokens=9)
