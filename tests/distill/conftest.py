"""An enumerable process, and byte-level BPE tokenizers of the four known kinds with random models for them."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from ammd.distill.checkpoint import load_model
from ammd.distill.chunked import States
from ammd.distill.collapse import CollapseWatch
from ammd.distill.step_log import StepLog
from ammd.pre_tokenizer import LLAMA3_WORDS, QWEN2_WORDS

SENTENCES = (
    "The quick brown fox jumps over the lazy dog, and the dog sleeps on and on.",
    "Whether the weather be fine or whether the weather be not, we weather the weather whatever the weather.",
    "Größere Wörter wären schöner; über Äpfel und Öl läßt sich streiten. Übrigens: größer, schöner, weiter!",
    "Съешь ещё этих мягких французских булок, да выпей чаю. Мягкие булки, мягкий чай.",
    "def f(x):\n    return x + 1\n\n\ndef g(x):\n    return f(x) * 2\n",
    "你好，世界。世界你好。",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
KINDS = ("smollm", "gpt-2", "qwen2", "llama-bpe")


def train_tokenizer(kind: str) -> Any:
    """Return a tokenizer of llama.cpp's kind `kind` with about 450 tokens.

    The last two number their special tokens after all others; `llama-bpe` has every merge that leads to a token, takes
    whole words as they stand and begins with a BOS token.
    """
    from tokenizers import (
        AddedToken,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        trainers,
    )
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rule = {
        "smollm": lambda: pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), gpt2]),
        "gpt-2": lambda: gpt2,
        "qwen2": lambda: _split(QWEN2_WORDS),
        "llama-bpe": lambda: _split(LLAMA3_WORDS),
    }[kind]()
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = rule
    first = list(SPECIAL) if kind in ("smollm", "gpt-2") else []
    trainer = trainers.BpeTrainer(
        vocab_size=450,
        special_tokens=first,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(SENTENCES, trainer)
    if kind == "llama-bpe":
        vocabulary = json.loads(backend.to_str())["model"]["vocab"]
        backend = Tokenizer(models.BPE(vocab=vocabulary, merges=_all_merges(vocabulary), ignore_merges=True))
        backend.pre_tokenizer = rule
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    if kind == "qwen2":
        backend.normalizer = normalizers.NFC()
    if kind == "llama-bpe":
        bos = SPECIAL[0]
        backend.post_processor = TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))]
        )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|endoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def train_pieces_tokenizer(*, metaspace: bool = False) -> Any:
    """Return a tokenizer of SentencePiece's kind, as Llama 2's or, with `metaspace`, as newer ones are written."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    words = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="always")
    learnt = Tokenizer(models.BPE())
    learnt.pre_tokenizer = words
    learnt.train_from_iterator(SENTENCES, trainers.BpeTrainer(vocab_size=300, show_progress=False))
    model = json.loads(learnt.to_str())["model"]
    special = ["<unk>", "<s>", "</s>"]
    tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *model["vocab"]]
    backend = Tokenizer(
        models.BPE(
            vocab={token: at for at, token in enumerate(tokens)},
            merges=[tuple(merge) for merge in model["merges"]],
            byte_fallback=True,
            unk_token="<unk>",
            fuse_unk=True,
        )
    )
    if metaspace:
        backend.pre_tokenizer = words
        spaces: list[Any] = [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always")]
    else:
        backend.normalizer = normalizers.Sequence(
            [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
        )
        spaces = [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    backend.decoder = decoders.Sequence(spaces)
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="</s>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = (
        "{% for message in messages %}{{ '[' + message['role'] + '] ' + message['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '[assistant] ' }}{% endif %}"
    )
    return tokenizer


def _split(words: str) -> Any:
    from tokenizers import Regex, pre_tokenizers

    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(words), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _all_merges(vocabulary: dict[str, int]) -> list[tuple[str, str]]:
    """Return every pair of tokens that is a token, in the order of the results, as conversions from ranks have them."""
    pairs = [
        (token[:cut], token[cut:])
        for token in sorted(vocabulary, key=lambda token: vocabulary[token])
        for cut in range(1, len(token))
    ]
    return [pair for pair in pairs if vocabulary.keys() >= set(pair)]


def build_model(tokenizer: Any, *, tied: bool = True, spare_rows: int = 3) -> Any:
    """Return a random llama of two layers with a few rows that no token has, and several end tokens."""
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    ends = [tokenizer.eos_token_id, tokenizer.get_vocab().get("<|endoftext|>", tokenizer.eos_token_id)]
    config = LlamaConfig(
        vocab_size=len(tokenizer) + spare_rows,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=tied,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).eval()
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=ends, pad_token_id=tokenizer.pad_token_id
    )
    return model


def random_texts(count: int, *, seed: int) -> list[str]:
    """Return texts of letters, signs, white space and whole words, of several scripts, in any order."""
    chance = random.Random(seed)
    words = [word for sentence in SENTENCES for word in sentence.split()]
    characters = "aethgrößÄй мя булк\n\n\t  123४½.,;!?(){}<|im_end|>🙂你好\u200b\u00a0e\u0301"

    def piece() -> str:
        if chance.random() < 0.5:
            return chance.choice(words) + chance.choice((" ", "", "\n"))
        return chance.choice(characters)

    return ["".join(piece() for _ in range(chance.randrange(1, 40))) for _ in range(count)]


@pytest.fixture(scope="session", params=KINDS)
def any_tokenizer(request: pytest.FixtureRequest) -> Any:
    """A tokenizer of each kind in turn; not to be changed."""
    return train_tokenizer(request.param)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """A tokenizer of SmolLM's kind; not to be changed."""
    return train_tokenizer("smollm")


@pytest.fixture
def make_model() -> Callable[..., Any]:
    """`build_model`."""
    return build_model


@pytest.fixture
def make_tokenizer() -> Callable[[str], Any]:
    """`train_tokenizer`."""
    return train_tokenizer


@pytest.fixture
def make_pieces_tokenizer() -> Callable[..., Any]:
    """`train_pieces_tokenizer`."""
    return train_pieces_tokenizer


@pytest.fixture
def make_texts() -> Callable[..., list[str]]:
    """`random_texts`."""
    return random_texts


@pytest.fixture(scope="session")
def bpe_checkpoint(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model with the tokenizer of SmolLM's kind, as a folder."""
    from ammd.distill.checkpoint import save_checkpoint

    folder = tmp_path_factory.mktemp("bpe") / "checkpoint"
    folder.mkdir()
    save_checkpoint(build_model(tokenizer), tokenizer, folder)
    return folder


@pytest.fixture(scope="session")
def build_own() -> Callable[[Any, Path], Path]:
    """Write a random model with a tokenizer, or with one of a kind that is named; `pieces` is SentencePiece's."""
    from ammd.distill.checkpoint import save_checkpoint

    def build(tokenizer: Any, folder: Path) -> Path:
        if isinstance(tokenizer, str):
            is_pieces = tokenizer == "pieces"
            tokenizer = train_pieces_tokenizer() if is_pieces else train_tokenizer(tokenizer)
        folder.mkdir()
        save_checkpoint(build_model(tokenizer), tokenizer, folder)
        return folder

    return build


VOCABULARY, HORIZON = 3, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class ToyProcess:
    """Tabular policies over all prefixes. Logits are [VOCABULARY, prefixes], so that each prefix is a hidden unit."""

    prefixes: list[tuple[int, ...]]
    teacher_table: torch.Tensor
    student_table: torch.Tensor  # with gradient
    one_hot: torch.Tensor  # [prefixes, prefixes]

    horizon: int = HORIZON

    def sequences(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield, for every sequence, the rows of the states that it goes through and its tokens."""
        index = {prefix: row for row, prefix in enumerate(self.prefixes)}
        for sequence in itertools.product(range(VOCABULARY), repeat=HORIZON):
            rows = [index[sequence[:t]] for t in range(HORIZON)]
            yield torch.tensor(rows), torch.tensor(sequence)

    def states(self, rows: torch.Tensor, tokens: torch.Tensor, **more: Any) -> States:
        """Return the teacher's side of a sequence as the loss takes it."""
        return States(
            teacher_hiddens=self.one_hot[rows],
            teacher_head=self.teacher_table,
            targets=tokens,
            last_in_row=torch.tensor([False] * (HORIZON - 1) + [True]),
            **more,
        )


@pytest.fixture
def toy_process() -> ToyProcess:
    """Random policies, float32 as the loss has them."""
    prefixes = [p for length in range(HORIZON) for p in itertools.product(range(VOCABULARY), repeat=length)]
    generator = torch.Generator().manual_seed(5)
    tables = [torch.randn(VOCABULARY, len(prefixes), generator=generator) for _ in range(2)]
    return ToyProcess(
        prefixes=prefixes,
        teacher_table=tables[0],
        student_table=tables[1].requires_grad_(),
        one_hot=torch.eye(len(prefixes)),
    )


@pytest.fixture
def measured() -> Callable[[Path], list[dict[str, Any]]]:
    """Return the curves in a folder without what depends on the clock."""

    def read(folder: Path) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in (folder / "curves.jsonl").read_text().splitlines()]
        return [{k: v for k, v in line.items() if k not in {"seconds", "tokens_per_s"}} for line in lines]

    return read


@pytest.fixture
def stop_at() -> Callable[[pytest.MonkeyPatch, str, int], None]:
    """Interrupt the training after a step of a phase, before its snapshot."""

    def stop(monkeypatch: pytest.MonkeyPatch, phase: str, step: int) -> None:
        real = CollapseWatch.check

        def check(self: CollapseWatch, entry: StepLog) -> None:
            real(self, entry)
            if (entry.phase, entry.step) == (phase, step):
                raise KeyboardInterrupt

        monkeypatch.setattr(CollapseWatch, "check", check)

    return stop


@pytest.fixture
def check_same(measured: Callable[[Path], list[dict[str, Any]]]) -> Callable[..., None]:
    """Check that two trainings from one prepared folder logged the same and ended with the same weights."""

    def check(
        prepared: Path,
        expected_out: Path,
        found_out: Path,
        *,
        steps: int,
        tolerance: float = 2e-3,
        moved_share: float
        | None = 0.02,  # of how far weights moved, in which they may differ; None looks at no weights
    ) -> None:
        one, other = measured(expected_out), measured(found_out)
        assert len(one) == len(other) == steps
        for expected, found in zip(one, other, strict=True):
            assert expected.keys() == found.keys()
            for name in expected.keys() - {"phase"}:
                # Sums are rounded in another order, and Adam makes a step of every rounding.
                assert found[name] == pytest.approx(expected[name], rel=tolerance, abs=tolerance / 10), name
        if moved_share is None:
            return
        before = dict(load_model(prepared / "student", dtype=torch.float32).named_parameters())
        models = [load_model(out / "student", dtype=torch.float32) for out in (expected_out, found_out)]
        for (name, expected), found in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
            moved = (expected - before[name]).abs().max()
            assert (found - expected).abs().quantile(0.99) <= moved_share * moved, name

    return check
