"""Teacher and student with different tokenizers: sentences of one novel, each asked to be answered by the next.

The teacher (4 layers, byte-level BPE of 1,000 tokens learnt from the novel) learns to continue a sentence of the first
eight tenths of *Pride and Prejudice*. The student (2 layers) reads BPE of 700 tokens learnt from Shakespeare. Both see
a sentence as a user's message in their own chat template. The teacher answers sentences of those chapters for training,
of the ninth tenth to tune on and of the last to judge, sampled at temperature 1.

    models/    both untaught of each other, and the sentences: train.jsonl, dev.jsonl, test.jsonl
    prepared/  what the prepare stage writes
    warm/      the student after cross-entropy on the teacher's texts, from which all methods start
    judged/    dev.jsonl, test.jsonl with the teacher's answers; facts.json
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from parts import write_part

from ammd.artifact import write_json
from ammd.conversations import render_prompt
from ammd.distill import prepare as prepare_stage
from ammd.distill.batches import TokenPair, build_batch
from ammd.distill.checkpoint import end_token_ids, load_model, load_tokenizer, save_checkpoint
from ammd.distill.match import read_match
from ammd.distill.policy import Policy
from ammd.distill.prompts import Example, read_examples, write_examples
from ammd.distill.rollout import Sampling, sample_responses
from ammd.distill.settings import DistillSettings, PrepareSettings, Sft, WarmStart
from ammd.distill.training import Training
from ammd.distill.two_tokenizers import Speller, speller
from ammd.progress import progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_SENTENCE_END = re.compile(r"(?<=[.!?;”])\s+")
_CHARACTERS = range(20, 101)  # of a sentence that is asked or answered
_TEACHER_TOKENS, _STUDENT_TOKENS = 1000, 700
_RESPONSE_TOKENS = 40
_TEACHER_ROWS, _TEACHER_LR = 16, 2e-3
WARM = WarmStart(steps=80, lr=3e-3)
_JUDGED_ROWS = 64

Pair = tuple[str, str]  # a sentence and the next


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much the teacher is trained, and how many prompts it answers."""

    teacher_steps: int = 300
    train_prompts: int = 512
    judged_prompts: int = 128  # of dev, and of test


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoVocabularies:
    """The setting, prepared in `work`. Implements `Setting`."""

    STEPS: ClassVar[int] = 60
    RATES: ClassVar[tuple[float, ...]] = (2e-3, 4e-3, 8e-3, 1.6e-2)

    work: Path
    name: str = "pride-and-prejudice"
    steps: int = STEPS
    learning_rates: Sequence[float] = RATES
    threads: int = 1

    def prepared(self, texts: str) -> Path:
        """See `Setting`; there are none but the teacher's texts."""
        del texts
        return self.work / "prepared"

    def settings(self, *, objective: Mapping[str, Any], seed: int) -> DistillSettings:
        """See `Setting`."""
        shared = {"batch_size": 16, "precision": "float32", "warm": WARM}
        return DistillSettings.model_validate(shared | {"objective": objective, "seed": seed})

    def judge(self, student: Policy, *, part: str, seed: int) -> dict[str, list[float]]:
        """See `Setting`. Nats and bytes of each text, of which the comparison makes nats a byte."""
        texts = read_examples(self.work / "judged" / f"{part}.jsonl")
        teacher, teachers = load_side(self.work / "prepared" / "teacher")
        _, students = load_side(self.work / "prepared" / "student")
        own = sample_responses(
            student.model,
            [text.prompt_ids for text in texts],
            sampling=sampling(students),
            randomness=torch.Generator().manual_seed(seed),
        )
        said = [students.read(ids) for ids in own]
        spelled = [teachers.spell(text, has_ended=has_ended) for text, has_ended in said]
        prompts = [text.teacher_pair[0] for text in texts]
        metrics = {
            "teacher_nats_per_byte": nats_of(student, [text.pair for text in texts]),
            "teacher_bytes": [float(len(text.response.encode())) for text in texts],
            "own_nats_per_byte": nats_of(teacher, list(zip(prompts, spelled, strict=True))),
            "own_bytes": [float(len(text.encode())) for text, _ in said],
        }
        return {f"{self.name}/{metric}": values for metric, values in metrics.items()}


def prepare(work: Path, data: Path, sizes: Sizes) -> None:
    """Write everything that the cells start from, unless it is there."""
    parts = {
        "models": partial(write_models, data=data, sizes=sizes),
        "prepared": partial(write_prepared, models=work / "models"),
        "warm": partial(write_warm, work=work),
        "judged": partial(write_judged, work=work, teacher_steps=sizes.teacher_steps),
    }
    for part, write in parts.items():
        if not (work / part).is_dir():
            write_part(part, work, write)


def read_facts(work: Path) -> dict[str, Any]:
    """Return what teacher, student and their texts are."""
    facts: dict[str, Any] = json.loads((work / "judged" / "facts.json").read_text(encoding="utf-8"))
    return facts


def load_side(folder: Path) -> tuple[Policy, Speller]:
    """Return a model and its way of writing."""
    model, tokenizer = load_model(folder, dtype=torch.float32), load_tokenizer(folder)
    return Policy(model), speller(tokenizer, end_token_ids(model, tokenizer))


def sampling(writer: Speller) -> Sampling:
    """Return how texts are drawn to be judged."""
    return Sampling(
        max_new_tokens=_RESPONSE_TOKENS,
        temperature=1.0,
        end_token_ids=tuple(writer.ends),
        batch_size=_JUDGED_ROWS,
    )


@torch.inference_mode()
def nats_of(policy: Policy, pairs: Sequence[TokenPair]) -> list[float]:
    """Return -log p of each response, all of its tokens together."""
    found: list[float] = []
    for start in range(0, len(pairs), _JUDGED_ROWS):
        rows = pairs[start : start + _JUDGED_ROWS]
        batch = build_batch(rows)
        logits = policy(batch) @ policy.head.T
        tokens = torch.nn.functional.cross_entropy(logits, batch.targets, reduction="none")
        found += [float(one.sum()) for one in tokens.split([len(response) for _, response in rows])]
    return found


def write_models(folder: Path, *, data: Path, sizes: Sizes) -> None:
    """Write a trained teacher, a random student and the sentences."""
    chapters = read_chapters(data / "text-books" / "pride-and-prejudice.jsonl")
    cuts = [0, len(chapters) * 8 // 10, len(chapters) * 9 // 10, len(chapters)]
    train, dev, test = (
        [pair for chapter in chapters[start:stop] for pair in sentence_pairs(chapter)]
        for start, stop in pairwise(cuts)
    )
    for name, pairs, count in (
        ("train", train, sizes.train_prompts),
        ("dev", dev, sizes.judged_prompts),
        ("test", test, sizes.judged_prompts),
    ):
        order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))[:count].tolist()
        lines = [json.dumps({"prompt": pairs[index][0]}) + "\n" for index in order]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    tokenizer = train_tokenizer(chapters[: cuts[1]], tokens=_TEACHER_TOKENS)
    teacher = build_model(tokenizer, layers=4, width=96, seed=0)
    train_teacher(teacher, tokenizer, train, steps=sizes.teacher_steps)
    save_checkpoint(teacher, tokenizer, folder / "teacher")
    other = read_chapters(data / "text-books" / "tiny-shakespeare.jsonl")
    tokenizer = train_tokenizer(other, tokens=_STUDENT_TOKENS)
    save_checkpoint(build_model(tokenizer, layers=2, width=64, seed=1), tokenizer, folder / "student")


def read_chapters(path: Path) -> list[str]:
    """Return the texts of a book's rows."""
    return [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]


def sentence_pairs(chapter: str) -> list[Pair]:
    """Return the sentences of a chapter, each with the next, that are neither short nor long."""
    sentences = _SENTENCE_END.split(chapter)
    return [pair for pair in pairwise(sentences) if all(len(one) in _CHARACTERS for one in pair)]


def train_tokenizer(texts: Sequence[str], *, tokens: int) -> PreTrainedTokenizerBase:
    """Return byte-level BPE of so many tokens, with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=tokens,
        special_tokens=list(_SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    unknown, start, end = _SPECIAL
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=start,
        eos_token=end,
        unk_token=unknown,
        pad_token=end,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = _TEMPLATE
    return tokenizer


def build_model(tokenizer: PreTrainedTokenizerBase, *, layers: int, width: int, seed: int) -> PreTrainedModel:
    """Return a Llama network with random weights."""
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=8 * width // 3,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        **special,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).eval()
    model.generation_config = GenerationConfig(**special)
    return model


def train_teacher(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair], *, steps: int
) -> None:
    """Train by cross-entropy on the second sentence of random pairs, in place."""
    policy = Policy(model)
    texts = [
        (
            render_prompt(tokenizer, [{"role": "user", "content": asked}]),
            [*tokenizer.encode(answer, add_special_tokens=False), tokenizer.eos_token_id],
        )
        for asked, answer in pairs
    ]
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_TEACHER_LR, weight_decay=0.1, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _TEACHER_LR, total_steps=steps)
    with progress("teacher", steps) as report:
        for step in range(1, steps + 1):
            rows = torch.randint(len(texts), (_TEACHER_ROWS,), generator=generator).tolist()
            batch = build_batch([texts[row] for row in rows])
            loss = torch.nn.functional.cross_entropy(policy(batch) @ policy.head.T, batch.targets)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            report(step, f"{loss.item():.2f} nats a token")


def write_prepared(folder: Path, *, models: Path) -> None:
    """Let the prepare stage write the teacher's texts in both spellings."""
    settings = PrepareSettings.model_validate(
        {
            "teacher": str(models / "teacher"),
            "student": {"kind": "model", "source": str(models / "student"), "tokenizer": "own"},
            "prompts": str(models / "train.jsonl"),
            "heldout": str(models / "dev.jsonl"),
            "max_heldout": 1,  # greedy answers, which nothing here reads
            "response_tokens": _RESPONSE_TOKENS,
        }
    )
    prepare_stage.run(prepare_stage.PrepareInputs(), settings, folder)


def write_warm(folder: Path, *, work: Path) -> None:
    """Write the student that knows the teacher's texts, and nothing else of the teacher."""
    objective = Sft(steps=WARM.steps, lr=WARM.lr)
    training = Training(
        prepared=work / "prepared",
        student=work / "prepared" / "student",
        settings=TwoVocabularies(work=work).settings(objective=objective.model_dump(), seed=0),
        curves=folder / "curves.jsonl",
    )
    training.second(objective)
    training.save(folder, dtype=torch.float32)


def write_judged(folder: Path, *, work: Path, teacher_steps: int) -> None:
    """Write the teacher's answers to dev and test prompts in both spellings, and the facts of the setting."""
    teacher, teachers = load_side(work / "prepared" / "teacher")
    student, students = load_side(work / "prepared" / "student")
    facts: dict[str, Any] = {
        "teacher_steps": teacher_steps,
        "parameters": {
            name: sum(one.numel() for one in policy.parameters())
            for name, policy in (("teacher", teacher), ("student", student))
        },
    }
    for part in ("dev", "test"):
        lines = (work / "models" / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()
        asked = [json.loads(line)["prompt"] for line in lines]
        examples = answered(asked, teacher, teachers, students)
        write_examples(folder / f"{part}.jsonl", examples)
        nats = nats_of(teacher, [example.teacher_pair for example in examples])
        facts[f"{part}_texts"] = len(examples)
        facts[f"{part}_teacher_nats_per_byte"] = sum(nats) / sum(
            len(example.response.encode()) for example in examples
        )
    match = read_match(work / "prepared")
    assert match is not None  # both tokenizers are made to differ
    texts = read_examples(work / "prepared" / "train.jsonl")
    write_json(
        folder / "facts.json",
        facts | {"train_texts": len(texts), "warm": WARM.model_dump(), "match": asdict(match)},
    )


def answered(asked: Sequence[str], teacher: Policy, teachers: Speller, students: Speller) -> list[Example]:
    """Return sampled answers of the teacher's in both spellings."""
    prompts, own = (
        [render_prompt(side.tokenizer, [{"role": "user", "content": one}]) for one in asked]
        for side in (teachers, students)
    )
    generator = torch.Generator().manual_seed(0)
    responses = sample_responses(teacher.model, prompts, sampling=sampling(teachers), randomness=generator)
    said = [teachers.read(ids) for ids in responses]
    return [
        Example(
            prompt=prompt,
            response=text,
            prompt_ids=own_ids,
            response_ids=students.spell(text, has_ended=has_ended),
            teacher_prompt_ids=ids,
            teacher_response_ids=tuple(response),
        )
        for prompt, own_ids, ids, response, (text, has_ended) in zip(
            asked, own, prompts, responses, said, strict=True
        )
    ]
