"""A training step of ours beside one of TRL's GKD trainer: seconds, tokens a second and peak memory.

Same teacher (SmolLM2-135M-Instruct), student (20 of its layers), prompts, rows a batch and response length, bfloat16
on the CPU, every step fully on-policy: TRL samples with probability 1, ours samples anew in each step. Ours runs GKD,
where the objective is the same, and AMMD, which does a half on the teacher's texts on top; also AMMD as the quickstart
has it, with one round of texts for 8 steps. Each keeps its activations, and computes them again in the backward pass
("checkpointed"): TRL's default, which turns off the KV cache that it samples with. Each measurement is a fresh process;
they run in turn, in an order that alternates from round to round.

    python benchmarks/step.py WORK_DIR [--trl-python PYTHON] [--rounds 3] [--steps 6]

`--trl-python` names an interpreter that has trl, where this one has not. Prints one JSON line last and writes
`benchmarks/results/step.json`; a row's `*_min` and `*_max` are over the rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import trl_step
from document import publish
from trl_step import RESPONSE_TOKENS, ROWS, SAMPLE, TRL, Clock, leave_sample

from ammd.machine import available_cores
from ammd.pipeline.recipe import data_file, load_recipe
from ammd.pipeline.stages import KEEP_FREED_MEMORY

LAYERS = 20
PROMPTS = 256
_GKD = {"kind": "gjsd", "student_share": 1.0, "rollout_reuse_steps": 1}
_AMMD = {"kind": "ammd", "discount": 0.5, "rollout_reuse_steps": 1}
_CHECKPOINTED = {"checkpoint_activations": True}
_REUSED = {**_AMMD, "rollout_reuse_steps": 8}
OURS: Mapping[str, dict[str, Any]] = {
    "gkd": {"objective": _GKD},
    "gkd, checkpointed": {"objective": _GKD, **_CHECKPOINTED},
    "ammd": {"objective": _AMMD},
    "ammd, checkpointed": {"objective": _AMMD, **_CHECKPOINTED},
    "ammd, checkpointed adapters": {"objective": _AMMD, "lora": {}, **_CHECKPOINTED},
    "ammd, learned critics": {"objective": {**_AMMD, "discount": 0.0, "critic": {"kind": "lowrank"}}},
    "ammd, texts reused for 8 steps": {"objective": _REUSED},
    "ammd, texts reused for 8 steps, checkpointed": {"objective": _REUSED, **_CHECKPOINTED},
}


def main() -> None:
    """Prepare once, measure in turn, write the rows."""
    arguments = parse_arguments()
    if arguments.name:
        leave_sample(arguments.work, partial(train_ours, arguments.work, arguments.name, arguments.steps))
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
    out = arguments.work / SAMPLE
    out.unlink(missing_ok=True)
    script = trl_step.__file__ if trainer == "trl" else __file__
    command = [python, script, str(arguments.work), "--name", name, "--steps", str(arguments.steps)]
    memory = KEEP_FREED_MEMORY if trainer == "ammd" else {}  # as `ammd` starts its own training
    environment = {**memory, **os.environ, "OMP_NUM_THREADS": str(available_cores())}
    subprocess.run(command, env=environment, check=True)
    sample: dict[str, float] = json.loads(out.read_text(encoding="utf-8"))
    return sample


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
    parser.add_argument("--name", default="", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
