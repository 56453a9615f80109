from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from ammd.errors import ArtifactError, ExportError
from ammd.export.checkpoint_facts import read_checkpoint_facts
from ammd.runtime.model_file import checkpoint_facts


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


def test_facts_agree_with_the_loaded_model(tiny_checkpoint: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint)
    facts = read_checkpoint_facts(tiny_checkpoint)
    assert facts.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert facts.embedding_weights == model.get_input_embeddings().weight.numel()
    assert facts.tied_head


def test_a_tie_that_the_configuration_leaves_out_is_seen_in_the_weights(
    checkpoint: Path, build_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    untied = build_checkpoint(tmp_path / "untied", layers=1, tied=False)
    for folder, tied in ((checkpoint, True), (untied, False)):
        config = json.loads((folder / "config.json").read_text())
        del config["tie_word_embeddings"]
        (folder / "config.json").write_text(json.dumps(config))
        assert read_checkpoint_facts(folder).tied_head is tied
        assert checkpoint_facts(folder)["tied_head"] is tied


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_missing_file_is_named(checkpoint: Path, name: str) -> None:
    (checkpoint / name).unlink()
    with pytest.raises(ArtifactError, match=f"is not a checkpoint: no `{name}`"):
        read_checkpoint_facts(checkpoint)


@pytest.mark.parametrize(("text", "message"), [("{", "is not JSON"), ("[]", "does not hold a JSON object")])
def test_damaged_config_is_refused(checkpoint: Path, text: str, message: str) -> None:
    (checkpoint / "config.json").write_text(text)
    with pytest.raises(ArtifactError, match=message):
        read_checkpoint_facts(checkpoint)


def test_folder_without_weights_is_refused(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"no `\*\.safetensors`"):
        read_checkpoint_facts(checkpoint)


def test_file_instead_of_a_folder_is_refused(checkpoint: Path) -> None:
    with pytest.raises(ArtifactError, match="is not a checkpoint"):
        read_checkpoint_facts(checkpoint / "config.json")


def test_truncated_weights_are_refused(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ArtifactError, match=r"is damaged: .* bytes, its header says"):
        read_checkpoint_facts(checkpoint)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"abc",
        struct.pack("<Q", 1 << 40) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 1) + b"{",
        struct.pack("<Q", 9) + b'{"a": {}}',
    ],
)
def test_weights_without_a_header_are_refused(checkpoint: Path, data: bytes) -> None:
    (checkpoint / "model.safetensors").write_bytes(data)
    with pytest.raises(ArtifactError, match="is damaged"):
        read_checkpoint_facts(checkpoint)


def test_tied_model_with_a_head_of_its_own_is_refused(checkpoint: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(checkpoint / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
    save_file(tensors, checkpoint / "model.safetensors")
    with pytest.raises(ExportError, match=r"says `tie_word_embeddings` but stores `lm_head\.weight`"):
        read_checkpoint_facts(checkpoint)
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    assert not read_checkpoint_facts(checkpoint).tied_head
