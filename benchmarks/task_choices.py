"""How much forward KL an AMMD recipe of a language task takes beside the game, and at which learning rate.

    python benchmarks/task_choices.py WORK_DIR --data FOLDER [--tasks scitldr-t5 ...] [--weights 0 0.3 1]
        [--rates 3e-4 1e-3] [--seeds 100 101] [--rows 200] [--tuning-rows 128] [--jobs 1] [--set KEY=VALUE]...

The setting is `tasks.py`'s, with the same WORK_DIR if that is given; each student answers rows of the train split that
neither anybody was trained on nor the comparison judges or chooses rates by. A task without that many rows (StrategyQA)
takes those that it chooses rates by. Prints one JSON line last and writes `benchmarks/results/task_choices.json`.
Rows: task, kd_weight, lr, seed, split, metric, value.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tasks
from cells import Cells, Result, in_workers
from comparison import machines_of
from document import publish
from parts import run

from ammd.machine import available_cores
from ammd.runtime.task_scores import summarize

TASKS = ("scitldr-t5", "tatoeba-t5", "strategyqa-t5", "dolly-t5")


def main() -> None:
    """Compute what is missing, in as many workers as asked for, then publish."""
    arguments = parse_arguments()
    settings = {task: tasks.setting_of(task, arguments) for task in arguments.tasks}
    results = in_workers(arguments.jobs, results_of, settings, arguments)
    facts = {
        task: {
            "questions": {split: questions.as_json() for split, questions in setting.further.items()},
            "recipe": tasks.described(setting.recipe),
        }
        for task, setting in settings.items()
    }
    publish("task_choices", list(rows_of(settings, results)), settings=facts, trained_on=machines_of(results))


def parse_arguments() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path, metavar="WORK_DIR")
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), help="names of packaged recipes")
    parser.add_argument("--weights", type=float, nargs="+", default=[0.0, 0.3, 1.0], help="of forward KL")
    parser.add_argument("--rates", type=float, nargs="+", default=[3e-4, 1e-3])
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[100, 101], help="none that the comparison judges"
    )
    parser.add_argument(
        "--rows", type=int, default=200, help="that the comparison judges, and that are asked here"
    )
    parser.add_argument("--tuning-rows", type=int, default=128, help="that the comparison chooses rates by")
    parser.add_argument("--jobs", type=int, default=1, help="workers")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of every recipe")
    return parser.parse_args()


def results_of(settings: Mapping[str, tasks.TaskSetting], arguments: argparse.Namespace) -> list[Result]:
    """Return every cell, computing what no other worker has or is at."""
    import torch

    torch.set_num_threads(max(1, available_cores() // arguments.jobs))
    plans = [
        {
            "task": task,
            "method": tasks.REFERENCE,
            "settings": {"kd_weight": weight},
            "seed": seed,
            "lr": rate,
            "part": "further",
        }
        for task in settings
        for seed in arguments.seeds
        for rate in arguments.rates
        for weight in arguments.weights
    ]
    return tasks.compute(Cells(arguments.work / "cells"), settings, plans)


def rows_of(settings: Mapping[str, tasks.TaskSetting], results: list[Result]) -> Iterator[dict[str, Any]]:
    """Yield one flat row for each student, split and metric."""
    for one in results:
        named = {"task": one["task"], **one["settings"], "lr": one["lr"], "seed": one["seed"]}
        if one["failure"]:
            yield named | {"metric": "failure", "value": one["failure"]}
        for split, rows in one["rows"].items():
            for metric, found in summarize(settings[one["task"]].kind, rows).items():
                yield named | {"split": split, "metric": metric, "value": found["value"]}


if __name__ == "__main__":
    run(main)
