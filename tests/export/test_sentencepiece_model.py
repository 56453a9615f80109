"""The rebuilt `tokenizer.model` gives the ids of the one that SentencePiece trained."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from ammd.errors import ExportError
from ammd.export.checkpoint_facts import read_json
from ammd.export.converter_view import converter_view
from ammd.export.sentencepiece_model import adds_space, is_sentencepiece, write_model
from ammd.runtime.reference import PROBE_TEXTS


@pytest.fixture(scope="module")
def checkpoint(
    build_family: Callable[..., Path], families: Mapping[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return build_family(families["mistral"], tmp_path_factory.mktemp("mistral") / "checkpoint")


@pytest.fixture
def document(checkpoint: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((checkpoint / "tokenizer.json").read_text(encoding="utf-8"))
    return document


def test_the_rebuilt_pieces_are_sentencepieces_own(checkpoint: Path, document: dict[str, Any]) -> None:
    trained = sentencepiece.SentencePieceProcessor(model_file=str(checkpoint / "tokenizer.model"))
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    rebuilt = sentencepiece.SentencePieceProcessor(model_proto=write_model(document, special=special))
    assert rebuilt.vocab_size() == trained.vocab_size()
    for number in range(trained.vocab_size()):
        assert rebuilt.IdToPiece(number) == trained.IdToPiece(number)
        assert rebuilt.IsByte(number) == trained.IsByte(number)
        assert rebuilt.IsControl(number) == trained.IsControl(number)
        assert rebuilt.IsUnknown(number) == trained.IsUnknown(number)
    for text in PROBE_TEXTS:
        assert rebuilt.encode(text) == trained.encode(text)


def test_pairs_in_another_order_are_refused_with_the_piece(document: dict[str, Any]) -> None:
    merges = document["model"]["merges"]
    first = next(n for n, pair in enumerate(merges) if "".join(pair) == "".join(merges[n + 1]))
    merges.append(merges.pop(first))
    with pytest.raises(ExportError, match="joins other pairs between those that make `") as caught:
        write_model(document, special={})
    assert "tokenizer.model" in caught.value.hint


@pytest.mark.parametrize(
    ("normalizer", "pre_tokenizer", "adds"),
    [
        ({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}]}, None, True),
        ({"type": "Replace"}, {"type": "Split"}, False),
        (None, {"type": "Metaspace", "prepend_scheme": "always"}, True),
        (None, {"type": "Metaspace", "prepend_scheme": "never"}, False),
    ],
)
def test_a_space_in_front_is_seen(normalizer: Any, pre_tokenizer: Any, adds: bool) -> None:
    assert adds_space({"normalizer": normalizer, "pre_tokenizer": pre_tokenizer}) is adds


def test_a_space_in_front_of_the_first_piece_alone_is_refused() -> None:
    scheme = {"type": "Metaspace", "prepend_scheme": "first"}
    with pytest.raises(ExportError, match=r"which no GGUF can say: llama\.cpp does both or neither"):
        adds_space({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [scheme]}})


def test_byte_level_tokenizers_are_others(tiny_checkpoint: Path) -> None:
    assert not is_sentencepiece(json.loads((tiny_checkpoint / "tokenizer.json").read_text()))
    with converter_view(tiny_checkpoint, read_json(tiny_checkpoint / "tokenizer.json")) as view:
        assert view == tiny_checkpoint


def test_the_converters_folder_has_what_transformers_5_leaves_out(
    checkpoint: Path, document: dict[str, Any], tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in checkpoint.iterdir():
        if path.name != "tokenizer.model":
            (bare / path.name).symlink_to(path)
    with converter_view(bare, read_json(bare / "tokenizer.json")) as view:
        assert view.name == "bare"
        assert (view / "tokenizer.model").is_file()
        assert (view / "model.safetensors").samefile(checkpoint / "model.safetensors")
        settings = json.loads((view / "tokenizer_config.json").read_text(encoding="utf-8"))
    added = {entry["content"] for entry in settings["added_tokens_decoder"].values()}
    assert added == {entry["content"] for entry in document["added_tokens"]}
    assert settings["add_prefix_space"] is True
    assert not view.exists()
