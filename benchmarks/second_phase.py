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
import os
import shutil
import statistics
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

from document import publish

from ammd.errors import AmmdError
from ammd.machine import available_cores
from ammd.pipeline.recipe import Recipe, data_file, load_recipe
from ammd.pipeline.stages import KEEP_FREED_MEMORY

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
    arguments = parse_arguments()
    overrides = [*arguments.set, f"prepare.max_heldout={arguments.prompts}"]
    recipe = load_recipe(arguments.recipe, overrides=overrides)
    work: Path = arguments.work
    if arguments.part:
        run_part(recipe, work, arguments)
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


def make(part: str, work: Path) -> None:
    """Make one part in a process of its own, unless it is there."""
    if (work / part).is_dir():
        return
    command = [sys.executable, __file__, *sys.argv[1:], "--part", part]
    threads = {"OMP_NUM_THREADS": str(available_cores())}
    subprocess.run(command, env={**KEEP_FREED_MEMORY, **threads, **os.environ}, check=True)


def run_part(recipe: Recipe, work: Path, arguments: argparse.Namespace) -> None:
    """Write one part into a sibling folder and rename it into place."""
    part: str = arguments.part
    folder = work / f"{part}.part"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    if part == "prepared":
        from ammd.distill import prepare

        files = {
            key: str(data_file(getattr(recipe.prepare, key), ("prepare", key)))
            for key in ("prompts", "heldout")
        }
        prepare.run(prepare.PrepareInputs(), recipe.prepare.model_copy(update=files), folder)
    else:
        name, _, kind = part.partition("/")
        seed = int(name.removeprefix("seed"))
        if kind == "judged":
            judge(work, seed, folder, prompts=arguments.prompts)
        else:
            train(recipe, work, seed, folder, arm=kind)
    folder.rename(work / part)


def train(recipe: Recipe, work: Path, seed: int, folder: Path, *, arm: str) -> None:
    """Train one arm and save its student in float32 where the others start from it."""
    import torch

    from ammd.distill.training import Training

    settings = recipe.distill.model_copy(update={"seed": seed})
    start = work / "prepared" / "student" if arm == "warm" else work / f"seed{seed}" / "warm" / "student"
    training = Training(
        prepared=work / "prepared", student=start, settings=settings, curves=folder / "curves.jsonl"
    )
    if arm != "warm":
        training.skip_texts(settings.warm.steps)
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


def spread(values: list[float]) -> float | None:
    """Return the standard deviation, or None for a single value."""
    return statistics.stdev(values) if len(values) > 1 else None


def last_step(folder: Path) -> dict[str, Any]:
    """Return the last line of a folder's curves."""
    last: dict[str, Any] = json.loads((folder / "curves.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    return last


def parse_arguments() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path, metavar="WORK_DIR")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--prompts",
        type=int,
        default=640,
        help="held-out prompts that judge; samples are drawn for the first half",
    )
    parser.add_argument("--recipe", type=Path, default=None, help="the packaged one when absent")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--part", default="", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except AmmdError as error:
        sys.exit(f"{error}\nhint: {error.hint}" if error.hint else str(error))
    except subprocess.CalledProcessError:
        sys.exit(1)  # the part has said why
