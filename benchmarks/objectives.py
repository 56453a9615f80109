"""AMMD beside every method that it is compared with, on one harness, at equal steps and at equal seconds.

    python benchmarks/objectives.py small WORK_DIR --data FOLDER [--seeds 0 1 2 3 4] [--methods ...] [--jobs 2]
    python benchmarks/objectives.py instructions WORK_DIR --data FOLDER [--seeds 0 1 2] [--methods ...]
        [--jobs 1] [--set prepare.teacher=FOLDER]...

Two settings: characters of a novel (`character_level.py`) and a real model on Dolly's prompts (`instructions.py`);
FOLDER holds `text-books/` or the `instruct-*/` folders and is needed until WORK_DIR is prepared. Each method's
learning rate is chosen on dev prompts over the same grid; then each is trained with every seed for the same steps, and
for as many steps as fit into the seconds that AMMD takes for them, by what a step of each costs when all are timed in
turn. A seed changes the order of texts, what the student writes while training, and its judged samples. Every training
is one cell, kept in WORK_DIR, so an interrupted comparison goes on. A GPU serves several jobs at once best under
NVIDIA's MPS: a student this small keeps it waiting for launches.

Prints one JSON line last and writes `benchmarks/results/objectives.json`, leaving the other setting's rows there as
they are. Rows: setting, method, budget, seed, set, metric, value; and, for each method, AMMD minus it with a 95 %
interval over seeds and prompts.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from cells import Cells
from comparison import Comparison, comparisons, costs_of, machines_of, rows_of, run_comparison
from document import kept, publish, revision
from methods import METHODS, REFERENCE
from parts import run
from prepared_setting import SETTINGS, prepared_setting

from ammd.machine import describe_machine


def main() -> None:
    """Compute what is missing, in as many workers as asked for, then compare."""
    arguments = parse_arguments()
    setting = prepared_setting(
        arguments.setting,
        arguments.work,
        data=arguments.data,
        overrides=arguments.set,
        jobs=arguments.jobs,
    )
    methods = {
        name: METHODS[name]
        for name in arguments.methods
        if arguments.setting == "small" or METHODS[name].texts == "teacher"
    }
    comparison = Comparison(
        setting=setting, methods=methods, seeds=arguments.seeds, reference=REFERENCE, in_time=True
    )
    results = run_comparison(comparison, jobs=arguments.jobs)
    facts = {
        "machine": describe_machine(),
        "trained_on": machines_of(results),
        "step_costs": costs_of(Cells(setting.work / "cells"), comparison),
        "revision": revision(),
        "steps": setting.steps,
        "learning_rates": setting.learning_rates,
        "methods": {name: dict(method.objective) for name, method in methods.items()},
    }
    rows = [
        {"setting": arguments.setting} | row
        for row in rows_of(results) + comparisons(results, reference=REFERENCE)
    ]
    others, settings = kept("objectives", "setting", arguments.setting)
    publish("objectives", others + rows, settings=settings | {arguments.setting: facts})


def parse_arguments() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("setting", choices=SETTINGS)
    parser.add_argument("work", type=Path, metavar="WORK_DIR")
    parser.add_argument("--data", type=Path, metavar="FOLDER")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument(
        "--jobs", type=int, default=1, help="workers; the small setting has one thread in each"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="of the recipe that is prepared from"
    )
    return parser.parse_args()


if __name__ == "__main__":
    run(main)
