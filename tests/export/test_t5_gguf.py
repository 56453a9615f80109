"""T5 to GGUF by llama.cpp's converter: the same tokens and numbers as the checkpoint, or a refusal by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ammd.artifact import hash_file
from ammd.errors import ExportError
from ammd.export.encoder_decoders import check_encoder_decoder
from ammd.export.misread import check_gguf
from ammd.export.quantize_gguf import quantize_gguf
from ammd.export.settings import ExportSettings, ImatrixSettings
from ammd.export.to_gguf import write_gguf
from ammd.runtime import reference
from ammd.runtime.engine import open_engine

SOURCE = "translate English to German: How old are you, and why is the hat red?"
TARGETS = list(range(5, 45))
FORMS = {
    "t5, a tied head": {"tied": True},
    "t5 1.1": {},
    "fewer layers in the decoder": {"encoder_layers": 3, "layers": 2},
    "mt5": {"model_type": "mt5"},
    "umt5": {"model_type": "umt5"},
    "umt5, a tied head": {"model_type": "umt5", "tied": True, "feed_forward_proj": "gated-gelu"},
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_file_computes_what_the_checkpoint_does(
    build_unigram_t5: Callable[..., Path], tmp_path: Path, form: dict[str, Any]
) -> None:
    checkpoint = build_unigram_t5(tmp_path / "checkpoint", **form)
    write_gguf(checkpoint, tmp_path / "student-f32.gguf", name="tiny", type_name="f32")
    found = []
    for path in (checkpoint, tmp_path / "student-f32.gguf"):
        with open_engine(path, threads=1, context_tokens=128) as engine:
            ids = engine.tokenize(SOURCE, add_special=True)
            rows = [chunk.copy() for chunk in engine.logits([*ids, *TARGETS], start=len(ids) - 1)]
            found.append((ids, np.concatenate(rows)))
    (ids, expected), (file_ids, logits) = found
    assert file_ids == ids
    assert len(expected) == len(TARGETS) + 1
    # llama.cpp keeps keys and values in F16, and its gelu is a table of F16 numbers.
    np.testing.assert_allclose(logits, expected, atol=2e-2 * np.abs(expected).max())
    assert (logits.argmax(-1) == expected.argmax(-1)).mean() > 0.9


@pytest.mark.parametrize("tokenizer", [{}, {"splits_words": True, "merges_spaces": False}])
def test_a_file_reads_text_as_the_checkpoint_does(
    build_unigram_t5: Callable[..., Path], tmp_path: Path, tokenizer: dict[str, bool]
) -> None:
    checkpoint = build_unigram_t5(tmp_path / "checkpoint", **tokenizer)
    write_gguf(checkpoint, tmp_path / "student-f16.gguf", name="tiny")
    texts = [
        SOURCE,
        "The <extra_id_0> jumps over the lazy <extra_id_1>.",
        "“Größe” ½ ﬁne … naïve cafe\u0301",
        "unknown: 你好 🇩🇪 {~}",
        "Answer.</s>",
        "two  spaces\tand\n\nlines",
        "  in front",
        "behind  \n",
    ]
    with (
        open_engine(checkpoint, threads=1, context_tokens=8) as torch,
        open_engine(tmp_path / "student-f16.gguf", threads=1, context_tokens=8) as file,
    ):
        for text in texts:
            ids, expected = file.tokenize(text), torch.tokenize(text)
            if not tokenizer:  # what is in front of a special token, or at the end, is a token here
                expected = reference._trimmed(torch._tokenizer, expected)
            assert ids == expected, text
            assert file.detokenize(ids) == torch.detokenize(ids), text
        assert file.tokenize("red ", add_special=True) == [*file.tokenize("red"), 1]
        assert (file.bos_token_id, file.end_token_ids) == (None, torch.end_token_ids) == (None, {1})


def test_a_tokenizer_that_keeps_spaces_apart_is_refused(
    build_unigram_t5: Callable[..., Path], tmp_path: Path
) -> None:
    checkpoint = build_unigram_t5(tmp_path / "checkpoint", merges_spaces=False)
    with pytest.raises(ExportError, match="reads several spaces as several"):
        write_gguf(checkpoint, tmp_path / "student-f16.gguf", name="tiny")


def test_the_same_checkpoint_gives_the_same_bytes(unigram_t5: Path, tmp_path: Path) -> None:
    hashes = set()
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        write_gguf(unigram_t5, folder / "student-f16.gguf", name="tiny")
        quantize_gguf(folder / "student-f16.gguf", folder / "student-q8_0.gguf", type_name="Q8_0")
        hashes.add(tuple(hash_file(folder / f"student-{kind}.gguf") for kind in ("f16", "q8_0")))
    assert len(hashes) == 1


@pytest.mark.parametrize(
    ("changed", "refused"),
    [
        ({}, None),
        ({"feed_forward_proj": "relu"}, None),
        ({"feed_forward_proj": "gelu"}, "feed_forward_proj = gelu, which no GGUF can say"),
        ({"feed_forward_proj": "gated-silu"}, "feed_forward_proj = gated-silu"),
        (
            {"relative_attention_max_distance": 64},
            r"relative_attention_max_distance = 64.*llama\.cpp has 128",
        ),
        ({"num_decoder_layers": 2}, None),
        ({"num_decoder_layers": 9}, "num_decoder_layers = 9.*as many layers as the encoder has, here 8"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    tmp_path: Path, changed: dict[str, Any], refused: str | None
) -> None:
    config = {"model_type": "t5", "feed_forward_proj": "gated-gelu", "num_layers": 8} | changed
    if refused is None:
        check_gguf(tmp_path, config)
        return
    with pytest.raises(ExportError, match=refused):
        check_gguf(tmp_path, config)


@pytest.mark.parametrize(
    ("settings", "refused"),
    [
        (ExportSettings(schemes=("gguf-q4_k_m", "onnx-standard-int8")), None),
        (
            ExportSettings(schemes=("gguf-f16", "onnx-int4")),
            "`onnx-int4` cannot be made of an encoder-decoder",
        ),
        (ExportSettings(schemes=("onnx-standard-fp16",)), "`onnx-standard-fp16` cannot be made"),
        (ExportSettings(schemes=("gguf-f16",), imatrix=ImatrixSettings()), "`export.imatrix` is measured on"),
        (ExportSettings(schemes=("gguf-mixed",), mixed={"bits": 4.5}), "`export.mixed` is measured on"),
        (
            ExportSettings(schemes=("onnx-standard-fp32",), onnx={"ort_format": True}),
            "`export.onnx.ort_format` writes models of one graph",
        ),
    ],
)
def test_what_cannot_be_made_is_refused_before_any_work(
    settings: ExportSettings, refused: str | None
) -> None:
    check_encoder_decoder({"model_type": "llama"}, settings)
    config = {"model_type": "t5", "is_encoder_decoder": True}
    if refused is None:
        check_encoder_decoder(config, settings)
        return
    with pytest.raises(ExportError, match=refused) as caught:
        check_encoder_decoder(config, settings)
    assert caught.value.hint
