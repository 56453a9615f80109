"""What the AMMD phase is worth: against stopping before it, and against as many seconds of more warm start.

From one prepared folder and one recipe, for each seed: the warm start; from it the second phase (`ammd`); and from
it the warm start's objective for as long as the second phase took (`warm-more`, at the warm start's own learning
rate and schedule, on the texts that would have come next). All three are judged on the same held-out prompts. A
seed changes the order of texts, what the student writes while training, and its sampled answers.

    python benchmarks/second_phase.py WORK_DIR [--seeds 0 1 2] [--prompts 640] [--recipe FILE] [--set KEY=VALUE]...

Finished parts in WORK_DIR are taken as they are, so an interrupted run goes on. Prints one JSON line last and writes
`benchmarks/results/second_phase.json`.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from document import publish
from parts import last_step, make, parser_of, prepare, recipe_of, run, spread, training_of, write_part

from ammd.pipeline.recipe import Recipe

_KL_TEXTS = 64
ARMS = ("warm", "warm-more", "ammd")
METRICS = (
    "sampled_nll_under_teacher_nats",
    "sampled_rouge_l",
    "rouge_l",
    "kl_to_teacher_nats",
    "top1_agreement",
    "nll_under_teacher_nats",
    "repetition",
    "looping_share",
)


def main() -> None:
    """Train and judge what is missing, then compare."""
    prompts_help = "held-out prompts that judge; samples are drawn for the first half"
    arguments = parser_of(__doc__, prompts=640, prompts_help=prompts_help).parse_args()
    recipe = recipe_of(arguments)
    work: Path = arguments.work
    if arguments.part:
        write_part(arguments.part, work, partial(run_part, recipe, arguments))
        return
    make("prepared", work)
    rows = []
    for seed in arguments.seeds:
        for arm in ("warm", "ammd", "warm-more"):
            make(f"seed{seed}/{arm}", work)
        make(f"seed{seed}/judged", work)
        rows += seed_rows(work / f"seed{seed}", seed)
    publish(
        "second_phase",
        rows + [row for arm in ("warm", "warm-more") for row in gains(rows, over=arm)],
        recipe=recipe.model_dump(mode="json", include={"prepare", "distill"}),
    )


def run_part(recipe: Recipe, arguments: argparse.Namespace, folder: Path) -> None:
    """Write the part that the options name into `folder`."""
    work: Path = arguments.work
    name, _, kind = arguments.part.partition("/")
    if name == "prepared":
        prepare(recipe, folder)
        return
    seed = int(name.removeprefix("seed"))
    if kind == "judged":
        judge(work, seed, folder, prompts=arguments.prompts)
    else:
        train(recipe, work, seed, folder, arm=kind)


def train(recipe: Recipe, work: Path, seed: int, folder: Path, *, arm: str) -> None:
    """Train one arm and save its student in float32 where the others start from it."""
    import torch

    settings = recipe.distill.model_copy(update={"seed": seed})
    warm = None if arm == "warm" else work / f"seed{seed}" / "warm"
    training = training_of(settings, work, folder, warm=warm)
    if arm == "ammd":
        training.second(settings.objective)
    else:
        steps = settings.warm.steps if arm == "warm" else equal_seconds(work / f"seed{seed}")
        training.warm(settings.warm.model_copy(update={"steps": steps}))
    training.save(folder / "student", dtype=torch.float32)


def equal_seconds(folder: Path) -> int:
    """Return the warm start's steps that take as long as the second phase did, by the median step."""
    text = (folder / "warm" / "curves.jsonl").read_text(encoding="utf-8")
    clock = [json.loads(line)["seconds"] for line in text.splitlines()]
    step = statistics.median(after - before for before, after in pairwise(clock))
    return math.ceil(last_step(folder / "ammd")["seconds"] / step)


def judge(work: Path, seed: int, folder: Path, *, prompts: int) -> None:
    """Judge all arms of a seed on the held-out prompts."""
    from ammd.runtime import evaluate
    from ammd.runtime.artifact_ref import ArtifactRef
    from ammd.runtime.settings import EvaluateSettings

    models = tuple(ArtifactRef(name=arm, path=work / f"seed{seed}" / arm / "student") for arm in ARMS)
    inputs = evaluate.EvaluateInputs(
        teacher=work / "prepared" / "teacher", heldout=work / "prepared" / "heldout.jsonl", models=models
    )
    settings = EvaluateSettings(prompts=prompts, sampled_prompts=prompts // 2, kl_texts=_KL_TEXTS, seed=seed)
    evaluate.run(inputs, settings, folder)


def seed_rows(folder: Path, seed: int) -> list[dict[str, Any]]:
    """Return one flat row for each arm."""
    quality = json.loads((folder / "judged" / "quality.json").read_text(encoding="utf-8"))
    rows = []
    for arm in ARMS:
        last = last_step(folder / arm)
        row = {"seed": seed, "arm": arm, "steps": last["step"], "seconds": last["seconds"]}
        rows.append(
            row | {metric: quality[arm][metric] for metric in METRICS} | {"prompts": quality[arm]["prompts"]}
        )
    return rows


def gains(rows: list[dict[str, Any]], *, over: str) -> list[dict[str, Any]]:
    """Return `ammd` minus another arm for each metric: mean and standard deviation over the seeds."""
    found = []
    for metric in METRICS:
        values = {
            arm: {row["seed"]: row[metric] for row in rows if row["arm"] == arm} for arm in ("ammd", over)
        }
        differences = [value - values[over][seed] for seed, value in values["ammd"].items()]
        found.append(
            {
                "arm": "ammd",
                "minus": over,
                "metric": metric,
                "seeds": len(differences),
                "difference_mean": statistics.mean(differences),
                "difference_sd": spread(differences),
                "ammd_sd": spread(list(values["ammd"].values())),
                "other_sd": spread(list(values[over].values())),
            }
        )
    return found


if __name__ == "__main__":
    run(main)
