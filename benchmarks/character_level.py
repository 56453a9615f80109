"""The small setting: characters of one novel, a teacher of 1.9 million parameters, a student of 0.1 million.

The teacher learns next characters from the first eight tenths of *Pride and Prejudice*. Prompts are 32 characters:
of that part to train on, of the ninth tenth to tune on, of the last to judge; the teacher continues each by 64,
sampled at temperature 1. The student starts from random weights and a warm start (forward KL) that all methods share.

    prepared/        what the prepare stage would write: teacher, student, train.jsonl, the teacher's states
    prepared-given/  the same with the novel's own continuations, for SFT
    warm/            the student after the warm start
    dev.jsonl, test.jsonl
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from imitation import measure_imitation

from ammd.distill.checkpoint import load_model, save_checkpoint
from ammd.distill.policy import Policy
from ammd.distill.prompts import Example, read_examples, write_examples
from ammd.distill.rollout import Sampling, sample_responses
from ammd.distill.settings import DistillSettings, WarmStart
from ammd.distill.teacher_states import TeacherStatesWriter
from ammd.distill.teacher_texts import keep_states
from ammd.distill.training import Training
from ammd.machine import has_fast_bfloat16
from ammd.progress import progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PROMPT_TOKENS, RESPONSE_TOKENS = 32, 64
TRAIN_PROMPTS, HELDOUT_PROMPTS = 8192, 512
DEV_TEXTS = 256  # that choose a learning rate
_WARM = WarmStart(steps=3000, lr=3e-3)  # until forward KL hardly gains any more
_SHARED = {"batch_size": 32, "precision": "float32", "chunk_tokens": 4096, "warm": _WARM}
_TEACHER_STEPS, _TEACHER_LR = 1200, 2e-3
_WINDOW_TOKENS, _WINDOWS = 128, 32
_END = "<end>"  # of a response; never in the text, so that all responses have the same length


@dataclass(frozen=True, slots=True, kw_only=True)
class CharacterLevel:
    """The setting, prepared in `work`. Implements `Setting`."""

    work: Path
    name: str = "pride-and-prejudice"
    steps: int = 100
    learning_rates: Sequence[float] = (1.7e-4, 5e-4, 1.5e-3, 4.5e-3)
    threads: int = 1  # the networks are too small for two

    def prepared(self, texts: str) -> Path:
        """See `Setting`."""
        return self.work / ("prepared" if texts == "teacher" else "prepared-given")

    def settings(self, *, objective: Mapping[str, Any], seed: int) -> DistillSettings:
        """See `Setting`."""
        return DistillSettings.model_validate(_SHARED | {"objective": objective, "seed": seed})

    def judge(self, student: Policy, *, part: str, seed: int) -> dict[str, list[float]]:
        """See `Setting`."""
        examples = read_examples(self.work / f"{part}.jsonl")[: DEV_TEXTS if part == "dev" else None]
        texts = [(text.prompt_ids, text.response_ids) for text in examples]
        teacher = Policy(load_model(self.work / "prepared" / "teacher", dtype=torch.float32))
        metrics, _ = measure_imitation(student, teacher, texts, sampling=sampling(), seed=seed)
        return {f"{self.name}/{metric}": values for metric, values in metrics.items()}


def sampling() -> Sampling:
    """Return how texts are drawn to be judged."""
    return Sampling(max_new_tokens=RESPONSE_TOKENS, temperature=1.0, end_token_ids=(0,), batch_size=512)


def prepare(folder: Path, book: Path) -> None:
    """Write everything that the cells start from, unless it is there."""
    if (folder / "warm").is_dir():
        return
    chapters = [json.loads(line) for line in book.read_text(encoding="utf-8").splitlines()]
    text = "\n\n".join(chapter["text"] for chapter in chapters)
    tokenizer = build_tokenizer(text)
    ids = torch.tensor(tokenizer.convert_tokens_to_ids(list(text)))
    cuts = [0, len(ids) * 8 // 10, len(ids) * 9 // 10, len(ids)]
    train, dev, test = (ids[start:stop] for start, stop in pairwise(cuts))
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("prepared", "prepared-given"):
        (folder / name).mkdir(parents=True)
    torch.manual_seed(0)
    teacher = build_model(tokenizer, layers=4, width=192, heads=6)
    train_teacher(teacher, train)
    save_checkpoint(teacher, tokenizer, folder / "prepared" / "teacher")
    student = build_model(tokenizer, layers=2, width=64, heads=4)
    save_checkpoint(student, tokenizer, folder / "prepared" / "student")
    for name in ("teacher", "student"):
        shutil.copytree(folder / "prepared" / name, folder / "prepared-given" / name)
    generator = torch.Generator().manual_seed(0)
    windows = _windows(train, TRAIN_PROMPTS, PROMPT_TOKENS + RESPONSE_TOKENS, generator).tolist()
    prompts = [window[:PROMPT_TOKENS] for window in windows]
    policy = Policy(teacher)
    _write_texts(folder / "prepared", policy, tokenizer, prompts, _written(teacher, prompts, generator))
    _write_texts(
        folder / "prepared-given", policy, tokenizer, prompts, [window[PROMPT_TOKENS:] for window in windows]
    )
    for name, part in (("dev", dev), ("test", test)):
        asked = _windows(part, HELDOUT_PROMPTS, PROMPT_TOKENS, generator).tolist()
        examples = _examples(tokenizer, asked, _written(teacher, asked, generator))
        write_examples(folder / f"{name}.jsonl", examples)
    training = Training(
        prepared=folder / "prepared",
        student=folder / "prepared" / "student",
        settings=DistillSettings.model_validate(_SHARED),
        curves=folder / "warm-curves.jsonl",
    )
    training.warm(_WARM)
    training.save(folder / "warm", dtype=torch.float32)


def build_tokenizer(text: str) -> PreTrainedTokenizerBase:
    """Return a tokenizer with one token a character of `text`."""
    from tokenizers import Regex, Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate([_END, *sorted(set(text))])}
    inner = Tokenizer(WordLevel(vocabulary, unk_token=_END))
    inner.pre_tokenizer = Split(Regex(r"[\s\S]"), behavior="isolated")
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=_END, pad_token=_END)


def build_model(
    tokenizer: PreTrainedTokenizerBase, *, layers: int, width: int, heads: int
) -> PreTrainedModel:
    """Return a Llama network with random weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=8 * width // 3,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


def train_teacher(model: PreTrainedModel, ids: torch.Tensor) -> None:
    """Train on random windows of a text, by cross-entropy, in place."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_TEACHER_LR, weight_decay=0.1, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _TEACHER_LR, total_steps=_TEACHER_STEPS)
    with progress("teacher", _TEACHER_STEPS) as report:
        for step in range(1, _TEACHER_STEPS + 1):
            windows = _windows(ids, _WINDOWS, _WINDOW_TOKENS, generator)
            with torch.autocast("cpu", torch.bfloat16, enabled=has_fast_bfloat16()):
                loss = model(input_ids=windows, labels=windows).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            report(step, f"{loss.item() / math.log(2):.2f} bits a character")


def _windows(ids: torch.Tensor, count: int, width: int, generator: torch.Generator) -> torch.Tensor:
    starts = torch.randint(len(ids) - width, (count, 1), generator=generator)
    return ids[starts + torch.arange(width)]


def _written(
    teacher: PreTrainedModel, prompts: Sequence[Sequence[int]], generator: torch.Generator
) -> list[list[int]]:
    return sample_responses(teacher, prompts, sampling=sampling(), randomness=generator)


def _examples(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
) -> list[Example]:
    def text(ids: Sequence[int]) -> str:
        return "".join(tokenizer.convert_ids_to_tokens(list(ids)))

    return [
        Example(
            prompt=text(prompt),
            response=text(response),
            prompt_ids=tuple(prompt),
            response_ids=tuple(response),
        )
        for prompt, response in zip(prompts, responses, strict=True)
    ]


def _write_texts(
    folder: Path,
    teacher: Policy,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
) -> None:
    """Write training texts with the teacher's states at their responses."""
    write_examples(folder / "train.jsonl", _examples(tokenizer, prompts, responses))
    width, pairs = teacher.head.shape[1], list(zip(prompts, responses, strict=True))
    with TeacherStatesWriter(folder, examples=len(pairs), width=width, dtype=torch.float32) as states:
        keep_states(teacher, states, range(len(pairs)), pairs, batch_size=256)
