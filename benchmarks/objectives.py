"""AMMD beside every method that it is compared with, on one harness, at equal steps and at equal seconds.

    python benchmarks/objectives.py WORK_DIR --book FILE [--seeds 0 1 2 3 4] [--methods ...] [--jobs 2]

The small setting (`character_level.py`): characters of a novel. Each method's learning rate is chosen on dev prompts
over the same grid; then each is trained with every seed for the same steps, and for as many steps as fit into the
seconds that AMMD takes for them, by what a step of each costs when all are timed in turn. A seed changes the order
of texts, what the student writes while training, and its judged samples. Every training is one cell, kept in
WORK_DIR, so an interrupted comparison goes on.

Prints one JSON line last and writes `benchmarks/results/objectives.json`. Rows: method, budget, seed, set, metric,
value; and, for each method, AMMD minus it with a 95 % interval over seeds and prompts.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import character_level
from comparison import LEARNING_RATES, STEPS, Comparison, comparisons, rows_of, run_comparison
from document import publish
from methods import METHODS, REFERENCE

from ammd.errors import AmmdError
from ammd.machine import available_cores


def main() -> None:
    """Compute what is missing, in as many workers as asked for, then compare."""
    arguments = parse_arguments()
    if arguments.book:
        character_level.prepare(arguments.work, arguments.book)
    methods = {name: METHODS[name] for name in arguments.methods}
    comparison = Comparison(
        work=arguments.work, methods=methods, seeds=arguments.seeds, reference=REFERENCE, in_time=True
    )
    results = run_comparison(comparison, jobs=arguments.jobs)
    publish(
        "objectives",
        rows_of(results) + comparisons(results, reference=REFERENCE),
        steps=STEPS,
        learning_rates=LEARNING_RATES,
        methods={name: dict(method.objective) for name, method in methods.items()},
    )


def parse_arguments() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path, metavar="WORK_DIR")
    parser.add_argument("--book", type=Path, help="JSONL with `text`; needed until WORK_DIR is prepared")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--jobs", type=int, default=available_cores())
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except AmmdError as error:
        sys.exit(f"{error}\nhint: {error.hint}" if error.hint else str(error))
