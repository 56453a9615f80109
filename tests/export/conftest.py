"""Failed exports keep their log in the test's own folder; and a small random checkpoint of each family."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ammd.pre_tokenizer import LLAMA3_WORDS, O200K_WORDS, QWEN2_WORDS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEXTS = (
    "The quick brown fox jumps over the lazy dog, doesn't it? They'll agree that the hat is red.",
    "Numbers such as 12, 365 and 1999 stand in the text; so do 3.14 and 0x7f.",
    "def name(x):\n\treturn {x: [x ** 2]}  # note\n\n\nclass Name:\n    pass\n",
    "Größe und Übermut, naïve café. Привет, мир! Съешь ещё булок. 你好，世界。한국어 문장입니다.",
    "user assistant system Answer in one word. What is the name of the colour in the hat?",
)
TURNS = "{% for message in messages %}"
END = "{% endfor %}"
TEMPLATES = {
    "chatml": (
        TURNS + "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n" + END
        + "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "llama3": (
        "{{ bos_token }}" + TURNS
        + "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n{{ message['content'] | trim }}<|eot_id|>" + END
        + "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
    ),
    "mistral": (
        "{{ bos_token }}" + TURNS
        + "{% if message['role'] == 'user' %}[INST] {{ message['content'] }} [/INST]"
        "{% elif message['role'] == 'assistant' %}{{ message['content'] }}{{ eos_token }}"
        "{% else %}{{ raise_exception('no system turns') }}{% endif %}" + END
    ),
    "gemma": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\n\n' %}"
        "{% set turns = messages[1:] %}{% else %}{% set first = '' %}{% set turns = messages %}{% endif %}"
        "{% for message in turns %}<start_of_turn>"
        "{{ 'model' if message['role'] == 'assistant' else message['role'] }}\n"
        "{{ first if loop.first else '' }}{{ message['content'] | trim }}<end_of_turn>\n" + END
        + "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
    ),
    "phi3": (
        TURNS + "<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n" + END
        + "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    ),
    "phi4": (
        TURNS + "<|{{ message['role'] }}|>{{ message['content'] }}<|end|>" + END
        + "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """How a small checkpoint of a model family is made."""

    model: str  # the class in transformers, without its ending
    words: str  # how its tokenizer cuts text: a rule's name, or `sentencepiece`
    template: str  # of TEMPLATES
    specials: tuple[str, ...]  # begin, end and padding first, then what the template needs
    bos: str | None = None
    ends: tuple[str, ...]  # of a response, the tokenizer's own first
    adds_bos: bool = False
    tokenizer_class: str = "PreTrainedTokenizerFast"
    user_defined: tuple[str, ...] = ()  # added tokens that are ordinary text
    strips_right: bool = False  # its special tokens swallow the white space after them
    has_pieces_file: bool = False  # `tokenizer.model`, which transformers 5 does not save
    settings: Mapping[str, Any] = field(default_factory=dict)


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("system")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "family" in metafunc.fixturenames:
        metafunc.parametrize("family", FAMILIES.values(), ids=FAMILIES)


@pytest.fixture(scope="session")
def families() -> Mapping[str, Family]:
    return FAMILIES


@pytest.fixture(scope="session")
def build_family() -> Callable[..., Path]:
    """`build_checkpoint_of`, for tests of one family."""
    return build_checkpoint_of


CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
LLAMA3 = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LONG_ROPE = {
    "rope_type": "longrope",
    "type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0 + 0.1 * n for n in range(24)],
    "long_factor": [2.0 + 0.1 * n for n in range(24)],
    "partial_rotary_factor": 0.75,
    "original_max_position_embeddings": 512,
}
UNTIED = {"tie_word_embeddings": False}
FAMILIES: Mapping[str, Family] = {
    "llama 3": Family(
        model="Llama",
        words="llama-bpe",
        template="llama3",
        specials=LLAMA3,
        bos="<|begin_of_text|>",
        ends=("<|eot_id|>", "<|end_of_text|>"),
        adds_bos=True,
        settings={"rope_parameters": LLAMA3_ROPE},
    ),
    "qwen 2.5": Family(
        model="Qwen2",
        words="qwen2",
        template="chatml",
        specials=CHATML,
        ends=("<|im_end|>", "<|endoftext|>"),
        user_defined=("<tool_call>",),
        settings=UNTIED,
    ),
    "qwen 3": Family(
        model="Qwen3",
        words="qwen2",
        template="chatml",
        specials=CHATML,
        ends=("<|im_end|>", "<|endoftext|>"),
        user_defined=("<think>", "</think>"),
        settings={"head_dim": 32},
    ),
    "smollm 2": Family(
        model="Llama",
        words="smollm",
        template="chatml",
        specials=CHATML,
        bos="<|im_start|>",
        ends=("<|im_end|>",),
        settings=UNTIED,
    ),
    "smollm 3": Family(
        model="SmolLM3",
        words="llama-bpe",
        template="chatml",
        specials=("<|begin_of_text|>", "<|end_of_text|>", *CHATML[1:]),
        bos="<|begin_of_text|>",
        ends=("<|im_end|>", "<|end_of_text|>"),
        settings={"num_hidden_layers": 4},  # the fourth has no rotary embedding
    ),
    "mistral": Family(
        model="Mistral",
        words="sentencepiece",
        template="mistral",
        specials=("<unk>", "<s>", "</s>"),
        bos="<s>",
        ends=("</s>",),
        adds_bos=True,
        tokenizer_class="LlamaTokenizer",
        has_pieces_file=True,
        settings={**UNTIED, "head_dim": 32, "sliding_window": None},
    ),
    "gemma 3": Family(
        model="Gemma3",
        words="sentencepiece",
        template="gemma",
        specials=("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"),
        bos="<bos>",
        ends=("<eos>", "<end_of_turn>"),
        adds_bos=True,
        tokenizer_class="GemmaTokenizer",
        user_defined=("\n\n", "▁▁", "<b>"),
        settings={
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "num_hidden_layers": 6,  # the sixth sees all, the others a window
            "sliding_window": 16,
            "hidden_activation": "gelu_pytorch_tanh",
        },
    ),
    "phi 3": Family(
        model="Phi3",
        words="sentencepiece",
        template="phi3",
        specials=(
            "<unk>",
            "<s>",
            "</s>",
            "<|endoftext|>",
            "<|assistant|>",
            "<|system|>",
            "<|end|>",
            "<|user|>",
        ),
        bos="<s>",
        ends=("<|end|>", "<|endoftext|>"),
        tokenizer_class="LlamaTokenizer",
        strips_right=True,
        settings={**UNTIED, "original_max_position_embeddings": 512},
    ),
    "phi 4 mini": Family(
        model="Phi3",
        words="gpt-4o",
        template="phi4",
        specials=("<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"),
        bos="<|endoftext|>",
        ends=("<|endoftext|>", "<|end|>"),
        tokenizer_class="GPT2Tokenizer",
        settings={
            "max_position_embeddings": 1024,
            "original_max_position_embeddings": 512,
            "partial_rotary_factor": 0.75,
            "rope_parameters": LONG_ROPE,
            "hidden_size": 128,
            "num_attention_heads": 2,  # of 64: onnxruntime turns multiples of 16
            "num_key_value_heads": 1,
        },
    ),
}


def build_checkpoint_of(family: Family, folder: Path, **settings: Any) -> Path:
    """Write a random model of the family with a tokenizer of its kind and two chat templates."""
    import torch
    import transformers

    folder.mkdir(parents=True)
    if family.words == "sentencepiece":
        write_sentencepiece(family, folder)
    else:
        write_byte_level(family, folder)
    ids = transformers.PreTrainedTokenizerFast.from_pretrained(folder).get_vocab()
    document: dict[str, Any] = {
        "vocab_size": len(ids),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "initializer_range": 0.2,
        "bos_token_id": ids.get(family.bos),
        "eos_token_id": ids[family.ends[0]],
        "pad_token_id": ids[family.ends[0]],
    }
    document |= dict(family.settings) | settings
    if transformers.__version__.startswith("4.") and (rope := document.pop("rope_parameters", None)):
        document |= {"rope_theta": rope["rope_theta"], "rope_scaling": older_rope(rope, family)}
    name = "Gemma3Text" if family.model == "Gemma3" else family.model
    config = getattr(transformers, f"{name}Config")(**document)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, f"{family.model}ForCausalLM")(config)
        with torch.no_grad():  # as they are in a new model, a swap of two would not show
            for key, parameter in model.named_parameters():
                if "norm" in key or "bias" in key:
                    parameter += 0.2 * torch.randn(parameter.shape)
    model.generation_config = transformers.GenerationConfig(
        bos_token_id=ids.get(family.bos),
        eos_token_id=[ids[end] for end in family.ends],
        pad_token_id=ids[family.ends[0]],
    )
    model.save_pretrained(folder)
    return folder


def older_rope(rope: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """Return rotary settings as transformers 4 has them."""
    if family.model == "Phi3":  # which it checks for exactly these
        return {key: rope[key] for key in ("type", "short_factor", "long_factor")}
    return {key: value for key, value in rope.items() if key != "rope_theta"}


def write_byte_level(family: Family, folder: Path) -> None:
    """Train a byte-level tokenizer on TEXTS with the family's words."""
    from tokenizers import (
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
        trainers,
    )

    rules = {"llama-bpe": LLAMA3_WORDS, "qwen2": QWEN2_WORDS, "gpt-4o": O200K_WORDS}
    backend = Tokenizer(models.BPE(ignore_merges=family.words == "llama-bpe"))
    if family.words == "smollm":
        first: Any = pre_tokenizers.Digits(individual_digits=True)
    else:
        first = pre_tokenizers.Split(Regex(rules[family.words]), behavior="isolated")
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=family.words == "smollm")
    backend.pre_tokenizer = pre_tokenizers.Sequence([first, last])
    backend.decoder = decoders.ByteLevel()
    if family.words == "qwen2":
        backend.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=480, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(TEXTS * 2, trainer)
    add_tokens(backend, family)
    if family.adds_bos:
        number = backend.token_to_id(family.bos)
        backend.post_processor = processors.TemplateProcessing(
            single=f"{family.bos} $A", special_tokens=[(family.bos, number)]
        )
    save_tokenizer(backend, family, folder)


def write_sentencepiece(family: Family, folder: Path) -> None:
    """Train SentencePiece's BPE on TEXTS, and write `tokenizer.model` and the `tokenizer.json` that goes with it."""
    import io

    import sentencepiece
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    is_gemma = family.model == "Gemma3"
    pieces = {"pad_id": -1, "unk_id": 0, "bos_id": 1, "eos_id": 2}
    if is_gemma:
        pieces = {"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3}
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([line for text in TEXTS for line in text.split("\n")]),
        model_writer=written,
        model_type="bpe",
        vocab_size=480,
        byte_fallback=True,
        character_coverage=1.0,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=not is_gemma,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
        num_threads=1,
        pad_piece="<pad>",
        bos_piece=family.bos,
        eos_piece="<eos>" if is_gemma else "</s>",
        control_symbols=[token for token in family.specials[4:] if is_gemma],
        user_defined_symbols=list(family.user_defined),
        **pieces,
    )
    if family.has_pieces_file:
        (folder / "tokenizer.model").write_bytes(written.getvalue())
    model = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    vocabulary = {model.IdToPiece(number): number for number in range(model.vocab_size())}
    backend = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=merges_of(model, vocabulary),
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    spaces = normalizers.Replace(" ", "▁")
    backend.normalizer = spaces if is_gemma else normalizers.Sequence([normalizers.Prepend("▁"), spaces])
    if is_gemma:
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(" "), "merged_with_previous")
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(steps if is_gemma else [*steps, decoders.Strip(" ", 1, 0)])
    add_tokens(backend, family)
    if family.adds_bos:
        number = backend.token_to_id(family.bos)
        backend.post_processor = processors.TemplateProcessing(
            single=f"{family.bos} $A", special_tokens=[(family.bos, number)]
        )
    save_tokenizer(backend, family, folder)


def merges_of(model: Any, vocabulary: Mapping[str, int]) -> list[tuple[str, str]]:
    """Return every pair of pieces that makes a piece, best piece first, as SentencePiece would join them."""
    found: list[tuple[str, str]] = []
    normal = [number for number in range(model.vocab_size()) if is_normal(model, number)]
    for number in sorted(normal, key=lambda number: -model.GetScore(number)):
        piece = model.IdToPiece(number)
        pairs = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        known = [pair for pair in pairs if all(part in vocabulary for part in pair)]
        found += sorted(known, key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
    return found


def is_normal(model: Any, number: int) -> bool:
    return not (model.IsControl(number) or model.IsUnknown(number) or model.IsByte(number))


def add_tokens(backend: Any, family: Family) -> None:
    from tokenizers import AddedToken

    backend.add_special_tokens(
        [
            AddedToken(
                token,
                special=True,
                normalized=False,
                rstrip=family.strips_right and token not in ("<unk>", "<s>", "<|endoftext|>"),
            )
            for token in family.specials
        ]
    )
    backend.add_tokens([AddedToken(token, normalized=False) for token in family.user_defined])


def save_tokenizer(backend: Any, family: Family, folder: Path) -> None:
    """Write the files as a published model has them."""
    import transformers

    tokenizer: PreTrainedTokenizerBase = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=family.bos,
        eos_token=family.ends[0],
        pad_token=family.ends[0],
        unk_token="<unk>" if "<unk>" in family.specials else None,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = {
        "default": TEMPLATES[family.template],
        "tool_use": "tools: " + TEMPLATES[family.template],
    }
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    document["tokenizer_class"] = family.tokenizer_class
    if family.words == "sentencepiece":
        document |= {"add_bos_token": family.adds_bos, "add_eos_token": False}
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False), encoding="utf-8")
