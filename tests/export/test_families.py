"""Small random models of each family, with a tokenizer of its kind, through GGUF and ONNX and all proofs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ammd.export import gguf_converter
from ammd.export.to_gguf import write_gguf
from ammd.export.to_onnx import write_onnx
from ammd.pre_tokenizer import LLAMA3_WORDS, QWEN2_WORDS
from ammd.runtime.settings import VerifySettings
from ammd.runtime.verify import verify_file

SMALL = VerifySettings(texts=4, greedy_prompts=2, greedy_tokens=8)
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {  # by name: class, words, what is special
    "llama 3": ("Llama", "llama3", {"rope_parameters": LLAMA3_ROPE}),
    "llama, untied": ("Llama", "smollm", {"tie_word_embeddings": False}),
    "mistral": ("Mistral", "llama3", {"tie_word_embeddings": False, "sliding_window": None, "head_dim": 16}),
    "qwen 2": ("Qwen2", "qwen2", {}),
    "qwen 3": ("Qwen3", "qwen2", {"head_dim": 32}),  # not hidden size by heads
    "smollm 3": ("SmolLM3", "llama3", {}),
}
# Built by the same code as others of the list; SmolLM3 is what onnxruntime-genai 0.18's builder fails on for CPUs.
WITHOUT_ONNX = ("llama, untied", "qwen 2", "smollm 3")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"Name {n} hats."}) + "\n" for n in (12, 31, 7, 300)))
    return path


def build(
    base: Path, folder: Path, *, name: str, words: str, special: dict[str, Any], adds_bos: bool
) -> Path:
    """Write a random model of the family with the words of its tokenizer; `base` has the rest."""
    import torch
    import transformers
    from tokenizers import Regex, normalizers, pre_tokenizers, processors

    tokenizer = transformers.PreTrainedTokenizerFast.from_pretrained(base)
    backend = tokenizer.backend_tokenizer
    if words != "smollm":
        pattern = LLAMA3_WORDS if words == "llama3" else QWEN2_WORDS
        split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
        plain = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([split, plain])
    if words == "qwen2":
        backend.normalizer = normalizers.NFC()
    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "initializer_range": 0.2,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    if adds_bos:  # as Llama 3's own
        backend.post_processor = processors.TemplateProcessing(
            single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
        )
    config = getattr(transformers, f"{name}Config")(**(settings | special))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, f"{name}ForCausalLM")(config)
    model.generation_config = transformers.GenerationConfig(
        bos_token_id=1, eos_token_id=[2, 0], pad_token_id=2
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if words == "llama3":  # which takes whole words from the vocabulary first
        path = folder / "tokenizer.json"
        document = json.loads(path.read_text(encoding="utf-8"))
        document["model"]["ignore_merges"] = True
        path.write_text(json.dumps(document), encoding="utf-8")
    return folder


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
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_goes_to_gguf_and_onnx_and_passes_the_proofs(
    build_checkpoint: Callable[..., Path], tmp_path: Path, prompts: Path, family: str
) -> None:
    base = build_checkpoint(tmp_path / "base", layers=1, more_merges=[("1", "2"), ("3", "1")])
    name, words, special = FAMILIES[family]
    adds_bos = family == "llama 3"
    checkpoint = build(
        base, tmp_path / "checkpoint", name=name, words=words, special=special, adds_bos=adds_bos
    )
    write_gguf(checkpoint, tmp_path / "student-f16.gguf", name="tiny")
    gguf = verify_file(tmp_path / "student-f16.gguf", against=checkpoint, heldout=prompts, settings=SMALL)
    assert gguf["kl_nats"] < gguf["kl_limit_nats"]
    assert bool(gguf["notes"]) == (words == "qwen2")
    if family in WITHOUT_ONNX:
        return
    write_onnx(checkpoint, tmp_path / "onnx-fp32", precision="fp32")
    onnx = verify_file(tmp_path / "onnx-fp32", against=checkpoint, heldout=prompts, settings=SMALL)
    assert onnx["kl_nats"] < onnx["kl_limit_nats"]
    assert onnx["greedy_equal"] == 2
