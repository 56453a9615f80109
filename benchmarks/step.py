"""A training step of ours beside one of TRL's GKD trainer: seconds, tokens a second and peak memory.

Same teacher (SmolLM2-135M-Instruct), student (20 of its layers), prompts, rows a batch and response length, bfloat16
on the CPU, every step fully on-policy: TRL samples with probability 1, ours samples anew in each step. Ours runs GKD,
where the objective is the same, and AMMD, which does a half on the teacher's texts on top; also AMMD as the quickstart
has it, with one round of texts for 8 steps. TRL runs with a KV cache, which its default, gradient checkpointing, would
turn off. Each measurement is a fresh process; they run in turn, in an order
that alternates from round to round.

    python benchmarks/step.py WORK_DIR [--trl-python PYTHON] [--rounds 3] [--steps 6]

`--trl-python` names an interpreter that has trl, where this one has not. Prints one JSON line last and writes
`benchmarks/results/step.json`; a row's `*_min` and `*_max` are over the rounds.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from document import publish

from ammd.machine import available_cores
from ammd.pipeline.recipe import data_file, load_recipe
from ammd.pipeline.stages import KEEP_FREED_MEMORY

ROWS = 8  # on-policy, a step
RESPONSE_TOKENS = 64
LAYERS = 20
PROMPTS = 256
_GKD = {"kind": "gjsd", "student_share": 1.0, "rollout_reuse_steps": 1}
_AMMD = {"kind": "ammd", "discount": 0.5, "rollout_reuse_steps": 1}
OURS: Mapping[str, dict[str, Any]] = {
    "gkd": {"objective": _GKD},
    "gkd, in pieces of 2 rows": {"objective": _GKD, "micro_batch_size": 2},
    "ammd": {"objective": _AMMD},
    "ammd, in pieces of 2 rows": {"objective": _AMMD, "micro_batch_size": 2},
    "ammd, adapters": {"objective": _AMMD, "micro_batch_size": 2, "lora": {}},
    "ammd, learned critics": {"objective": {**_AMMD, "discount": 0.0, "critic": {"kind": "lowrank"}}},
    "ammd, texts reused for 8 steps": {"objective": {**_AMMD, "rollout_reuse_steps": 8}},
}
TRL: Mapping[str, dict[str, Any]] = {"gkd": {}}


def main() -> None:
    """Prepare once, measure in turn, write the rows."""
    arguments = parse_arguments()
    if arguments.part:
        measure(arguments)
        return
    prepare(arguments.work / "prepared")
    cells = [("ammd", name, sys.executable) for name in OURS]
    cells += [("trl", name, arguments.trl_python) for name in TRL]
    found: dict[tuple[str, str], list[dict[str, float]]] = defaultdict(list)
    for number in range(arguments.rounds):
        for trainer, name, python in cells if number % 2 == 0 else reversed(cells):
            found[trainer, name].append(run(python, trainer, name, arguments))
    rows = [
        {"trainer": trainer, "objective": name, **summarize(samples)}
        for (trainer, name), samples in found.items()
    ]
    publish(
        "step",
        rows,
        setting={
            "teacher": "SmolLM2-135M-Instruct",
            "student_layers": LAYERS,
            "on_policy_rows": ROWS,
            "response_tokens": RESPONSE_TOKENS,
            "measured_steps": arguments.steps,
            "rounds": arguments.rounds,
        },
        trl_versions=trl_versions(arguments.trl_python),
    )


def prepare(folder: Path) -> None:
    """Write teacher, student and texts, unless they are there."""
    if folder.is_dir():
        return
    from ammd.distill import prepare

    recipe = load_recipe(
        None,
        overrides=[
            f"prepare.student.layers={LAYERS}",
            f"prepare.max_prompts={PROMPTS}",
            f"prepare.response_tokens={RESPONSE_TOKENS}",
            "prepare.max_heldout=1",
        ],
    )
    files = {
        key: str(data_file(getattr(recipe.prepare, key), ("prepare", key))) for key in ("prompts", "heldout")
    }
    part = folder.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    prepare.run(prepare.PrepareInputs(), recipe.prepare.model_copy(update=files), part)
    part.rename(folder)


def run(python: str, trainer: str, name: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Measure one cell in a fresh process."""
    out = arguments.work / "sample.json"
    out.unlink(missing_ok=True)
    command = [python, __file__, str(arguments.work), "--part", trainer, "--name", name]
    command += ["--steps", str(arguments.steps)]
    memory = KEEP_FREED_MEMORY if trainer == "ammd" else {}  # as `ammd` starts its own training
    environment = {**memory, **os.environ, "OMP_NUM_THREADS": str(available_cores())}
    subprocess.run(command, env=environment, check=True)
    sample: dict[str, float] = json.loads(out.read_text(encoding="utf-8"))
    return sample


def measure(arguments: argparse.Namespace) -> None:
    """Take the steps of one cell and leave its sample."""
    step = train_trl if arguments.part == "trl" else train_ours
    sample = step(arguments.work, arguments.name, arguments.steps)
    sample["peak_rss_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    (arguments.work / "sample.json").write_text(json.dumps(sample), encoding="utf-8")


class Clock:
    """Seconds spent in wrapped functions since the last reset."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def wrap(self, owner: Any, function: str, name: str | Callable[[Any], str]) -> None:
        """Time a function of `owner` under `name`, or under what `name` says of its first argument."""
        inner = getattr(owner, function)

        @functools.wraps(inner)
        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return inner(*args, **kwargs)
            finally:
                label = name if isinstance(name, str) else name(args[0])
                self.seconds[label] += time.perf_counter() - started

        setattr(owner, function, timed)


def train_ours(work: Path, name: str, steps: int) -> dict[str, float]:
    """Run one of our objectives; the first steps, up to the second round of texts, are not counted."""
    from ammd.distill import adversary, policy, student_texts
    from ammd.distill.settings import DistillSettings
    from ammd.distill.training import Training

    objective = OURS[name]["objective"]
    reuse = objective["rollout_reuse_steps"]
    measured = -(-steps // reuse) * reuse
    share = objective.get("student_share", 0.5)
    settings = DistillSettings.model_validate(
        {
            **OURS[name],
            "batch_size": round(ROWS / share),
            "objective": {**objective, "steps": reuse + measured, "lr": 1e-5},
        }
    )
    curves = work / "curves.jsonl"
    curves.unlink(missing_ok=True)
    training = Training(
        prepared=work / "prepared", student=work / "prepared" / "student", settings=settings, curves=curves
    )
    clock = Clock()
    clock.wrap(student_texts.StudentTexts, "next_batch", "rollout")
    clock.wrap(adversary.Adversary, "ascend", "critics")
    is_student = lambda self: next(self.parameters()).requires_grad  # noqa: E731
    clock.wrap(policy.Policy, "forward", lambda self: "student_forward" if is_student(self) else "teacher")
    training.second(settings.objective)
    lines = [json.loads(line) for line in curves.read_text(encoding="utf-8").splitlines()]
    seconds = [after["seconds"] - before["seconds"] for before, after in pairwise(lines)]
    # Of all steps, the first included: how the time is divided needs no warm start.
    total = lines[-1]["seconds"]
    return {
        "step_s": statistics.mean(seconds[reuse - 1 :]),
        "tokens_per_s": lines[-1]["tokens_per_s"],
        "rollout_share": clock.seconds["rollout"] / total,
        "teacher_share": clock.seconds["teacher"] / total,
        "critics_share": clock.seconds["critics"] / total,
    }


def train_trl(work: Path, name: str, steps: int) -> dict[str, float]:
    """Run TRL's GKD trainer, fully on-policy; the first step is not counted."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    prepared = work / "prepared"
    lines = (prepared / "train.jsonl").read_text(encoding="utf-8").splitlines()
    examples = [json.loads(line) for line in lines]
    chats = [
        [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}]
        for row in examples
    ]
    clock = Clock()
    stamps: list[float] = []
    tokens: list[int] = []

    class Stamps(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_args: Any, **_kwargs: Any) -> None:
            stamps.append(time.perf_counter())

        def on_step_end(self, *_args: Any, **_kwargs: Any) -> None:
            stamps.append(time.perf_counter())

    class Counting(GKDTrainer):  # type: ignore[misc]
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            tokens.append(int((inputs["labels"] != -100).sum()))
            return super().compute_loss(model, inputs, *args, **kwargs)

    clock.wrap(Counting, "generate_on_policy_outputs", "rollout")
    Counting.generate_on_policy_outputs = staticmethod(Counting.generate_on_policy_outputs)
    teacher = AutoModelForCausalLM.from_pretrained(prepared / "teacher", dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(prepared / "teacher")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    trainer = Counting(
        model=AutoModelForCausalLM.from_pretrained(prepared / "student", dtype=torch.float32),
        teacher_model=teacher,
        args=GKDConfig(
            output_dir=str(work / "trl"),
            per_device_train_batch_size=ROWS,
            max_steps=1 + steps,
            max_new_tokens=RESPONSE_TOKENS,
            lmbda=1.0,
            beta=0.5,
            temperature=1.0,
            learning_rate=1e-5,
            bf16=True,
            use_cpu=True,
            gradient_checkpointing=False,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            **TRL[name],
        ),
        processing_class=tokenizer,
        train_dataset=Dataset.from_dict({"messages": chats}),
        callbacks=[Stamps()],
    )
    clock.wrap(trainer.teacher_model, "forward", "teacher")
    trainer.train()
    seconds = [stamps[place + 1] - stamps[place] for place in range(0, len(stamps), 2)]
    return {
        "step_s": statistics.mean(seconds[1:]),
        "tokens_per_s": sum(tokens) / sum(seconds),
        "rollout_share": clock.seconds["rollout"] / sum(seconds),
        "teacher_share": clock.seconds["teacher"] / sum(seconds),
    }


def summarize(samples: list[dict[str, float]]) -> dict[str, float]:
    """Return the median over the rounds, and the spread of what is compared."""
    row = {key: statistics.median(sample[key] for sample in samples) for key in samples[0]}
    for key in ("step_s", "peak_rss_bytes"):
        row[f"{key}_min"] = min(sample[key] for sample in samples)
        row[f"{key}_max"] = max(sample[key] for sample in samples)
    return row


def trl_versions(python: str) -> dict[str, str]:
    """Return what the other interpreter has."""
    code = (
        "import json; from importlib.metadata import version; "
        "print(json.dumps({name: version(name) for name in ('trl', 'transformers', 'torch')}))"
    )
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def parse_arguments() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path, metavar="WORK_DIR")
    parser.add_argument("--trl-python", default=sys.executable)
    parser.add_argument("--rounds", type=int, default=3, help="fresh processes for each cell")
    parser.add_argument("--steps", type=int, default=6, help="that are measured in a process")
    parser.add_argument("--part", choices=("ammd", "trl"), default="", help=argparse.SUPPRESS)
    parser.add_argument("--name", default="", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
