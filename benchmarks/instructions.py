"""The real setting: SmolLM2-135M-Instruct to the quickstart's student, on Dolly's prompts, judged on four sets.

Training prompts are Dolly's of at most 300 characters, answered by the teacher (64 tokens at temperature 1); all
methods go on from one warm start (forward KL). Judged on Dolly's evaluation prompts, Self-Instruct's seeds, Vicuna's
questions and a fixed sample of Super-NaturalInstructions: imitation as in `imitation.py`, and for greedy answers

- `rouge_l_teacher`, `rouge_l_reference`   ROUGE-L against the teacher's greedy answer, and the best of the references
- `sampled_rouge_l_teacher`                the same for samples at temperature 1
- `repetition`                             share of 4-word sequences said before in the same answer

    prepared/     teacher, student, train.jsonl, the teacher's states
    warm/         the student after the warm start
    sets/NAME.jsonl, sets/NAME-sampled.jsonl     prompts with the teacher's greedy and sampled answers
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from imitation import measure_imitation

from ammd.conversations import render_prompt
from ammd.distill import prepare as prepare_stage
from ammd.distill.batches import TokenPair
from ammd.distill.checkpoint import copy_in_dtype, end_token_ids, load_model, load_tokenizer
from ammd.distill.device import choose_device
from ammd.distill.policy import Policy
from ammd.distill.prompts import Example, write_examples
from ammd.distill.rollout import Sampling, sample_responses
from ammd.distill.settings import DistillSettings, WarmStart
from ammd.distill.training import Training
from ammd.machine import available_cores
from ammd.pipeline.recipe import load_recipe
from ammd.runtime.quality import each_rouge_l, repetition, rouge_l

RESPONSE_TOKENS = 64
TRAIN_PROMPTS = 3072
SETS: Mapping[str, tuple[str, int]] = {  # file and how many prompts
    "dolly-dev": ("instruct-dolly/dev.jsonl", 64),
    "dolly": ("instruct-dolly/eval.jsonl", 100),
    "self-instruct": ("instruct-self-instruct/seed_train.jsonl", 100),
    "vicuna": ("instruct-vicuna/eval.jsonl", 80),
    "super-ni": ("instruct-super-ni/eval.jsonl", 100),
}
_DEV = ("dolly-dev",)
_TRAIN_CHARACTERS, _JUDGED_CHARACTERS = 300, 1000
_WARM = WarmStart(steps=200, lr=6e-4)
_SHARED = {"batch_size": 16, "warm": _WARM}


@dataclass(frozen=True, slots=True, kw_only=True)
class Instructions:
    """The setting, prepared in `work`. Implements `Setting`."""

    work: Path
    name: str = "instructions"
    steps: int = 60
    learning_rates: Sequence[float] = (7.5e-5, 1.5e-4, 3e-4)
    threads: int = available_cores()

    def prepared(self, _texts: str) -> Path:
        """See `Setting`; all texts are the teacher's."""
        return self.work / "prepared"

    def settings(self, *, objective: Mapping[str, Any], seed: int) -> DistillSettings:
        """See `Setting`."""
        return DistillSettings.model_validate(_SHARED | {"objective": objective, "seed": seed})

    def judge(self, student: Policy, *, part: str, seed: int) -> dict[str, list[float]]:
        """See `Setting`."""
        judged = Policy(copy_in_dtype(student.model, torch.bfloat16))
        teacher = Policy(load_model(self.work / "prepared" / "teacher", dtype=torch.bfloat16))
        tokenizer = load_tokenizer(self.work / "prepared" / "teacher")
        ends = end_token_ids(teacher.model, tokenizer)
        metrics: dict[str, list[float]] = {}
        for name in SETS:
            if (name in _DEV) != (part == "dev"):
                continue
            rows = _read(self.work / "sets" / f"{name}.jsonl")
            sampled = _read(self.work / "sets" / f"{name}-sampled.jsonl")
            texts: list[TokenPair] = [(row["prompt_ids"], row["response_ids"]) for row in sampled]
            found, own = measure_imitation(judged, teacher, texts, sampling=_sampling(ends, 1.0), seed=seed)
            greedy = sample_responses(
                judged.model,
                [row["prompt_ids"] for row in rows],
                sampling=_sampling(ends, 0.0),
                randomness=torch.Generator(),
            )
            answers = tokenizer.batch_decode(greedy, skip_special_tokens=True)
            samples = tokenizer.batch_decode(own, skip_special_tokens=True)
            found |= {
                "rouge_l_teacher": each_rouge_l(answers, [row["response"] for row in rows]),
                "rouge_l_reference": [
                    max(rouge_l([answer], [reference]) for reference in json.loads(row["reference"]))
                    for answer, row in zip(answers, rows, strict=True)
                ],
                "sampled_rouge_l_teacher": each_rouge_l(samples, [row["response"] for row in rows]),
                "repetition": [repetition(answer) for answer in answers],
            }
            metrics |= {f"{name}/{metric}": values for metric, values in found.items()}
        return metrics


def prepare(folder: Path, data: Path, *, overrides: Sequence[str] = ()) -> None:
    """Write everything that the cells start from, unless it is there.

    Args:
        folder: To write into.
        data: Holds the data sets.
        overrides: KEY=VALUE of the packaged recipe, whose teacher and student are taken.
    """
    if (folder / "warm").is_dir():
        return
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "sets").mkdir(parents=True)
    rows = [
        {"prompt": row["prompt"]}
        for row in _read(data / "instruct-dolly" / "train.jsonl")
        if len(row["prompt"]) <= _TRAIN_CHARACTERS
    ]
    _write(folder / "prompts.jsonl", rows)
    chosen = {name: _choose(data / path, count) for name, (path, count) in SETS.items()}
    _write(folder / "dev.jsonl", [{"prompt": row["prompt"]} for row in chosen[_DEV[0]]])
    recipe = load_recipe(None, overrides=overrides).prepare
    wanted = recipe.model_copy(
        update={
            "prompts": str(folder / "prompts.jsonl"),
            "heldout": str(folder / "dev.jsonl"),
            "max_prompts": TRAIN_PROMPTS,
            "response_tokens": RESPONSE_TOKENS,
        }
    )
    (folder / "prepared").mkdir()
    prepare_stage.run(prepare_stage.PrepareInputs(), wanted, folder / "prepared")
    _answer(folder, chosen)
    training = Training(
        prepared=folder / "prepared",
        student=folder / "prepared" / "student",
        settings=DistillSettings.model_validate(_SHARED),
        curves=folder / "warm-curves.jsonl",
    )
    training.warm(_WARM)
    training.save(folder / "warm", dtype=torch.float32)


def _choose(path: Path, count: int) -> list[dict[str, Any]]:
    """Return a fixed sample of a set's prompts that are not too long, with all their references."""
    rows = [row for row in _read(path) if len(row["prompt"]) <= _JUDGED_CHARACTERS]
    random.Random(0).shuffle(rows)
    return [
        {
            "prompt": row["prompt"],
            "references": row.get("responses") or [row.get("response") or row["reference"]],
        }
        for row in rows[:count]
    ]


def _answer(folder: Path, chosen: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Let the teacher answer all sets: greedily in float32, and by sampling."""
    teacher = load_model(folder / "prepared" / "teacher", dtype=torch.float32).to(choose_device("auto"))
    tokenizer = load_tokenizer(folder / "prepared" / "teacher")
    ends = end_token_ids(teacher, tokenizer)
    for name, rows in chosen.items():
        prompts = [
            render_prompt(tokenizer, [{"role": "user", "content": str(row["prompt"])}]) for row in rows
        ]
        for suffix, temperature in (("", 0.0), ("-sampled", 1.0)):
            responses = sample_responses(
                teacher,
                prompts,
                sampling=_sampling(ends, temperature),
                randomness=torch.Generator().manual_seed(0),
            )
            write_examples(
                folder / "sets" / f"{name}{suffix}.jsonl",
                [
                    Example(
                        prompt=str(row["prompt"]),
                        response=tokenizer.decode(response, skip_special_tokens=True),
                        prompt_ids=prompt,
                        response_ids=tuple(response),
                    )
                    for row, prompt, response in zip(rows, prompts, responses, strict=True)
                ],
                references=[json.dumps(row["references"]) for row in rows],
            )


def _sampling(ends: tuple[int, ...], temperature: float) -> Sampling:
    return Sampling(
        max_new_tokens=RESPONSE_TOKENS, temperature=temperature, end_token_ids=ends, batch_size=128
    )


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
