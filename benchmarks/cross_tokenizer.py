"""AMMD beside its rivals where the teacher's tokenizer is not the student's, in minutes on one core.

    python benchmarks/cross_tokenizer.py WORK_DIR --data FOLDER [--seeds 0 1 2] [--methods ...] [--max-cells N]
        [--steps 60] [--rates 2e-3 4e-3 8e-3 1.6e-2] [--teacher-steps 300] [--texts 512] [--judged 128]

`benchmarks/two_vocabularies.py` has teacher, student and texts; FOLDER holds `text-books/`. All methods start from one
student, which has learnt from the teacher's texts alone, and are trained for as many steps on the same texts: SeqKD
goes on with the texts alone, the others compare distributions where both tokenizers have said the same text
(docs/cross_tokenizer.md). A method's learning rate is the one of the grid after which its student is best on dev
prompts, by the sum of both metrics. Judged on prompts of chapters that nobody was trained on:

- `teacher_nats_per_byte`: how unlikely the student finds what the teacher wrote;
- `own_nats_per_byte`: how unlikely the teacher finds what the student writes at temperature 1.

Each training is a cell, kept in WORK_DIR, so an interrupted comparison goes on; with `--max-cells N` a call ends after
N of them, with 0 once teacher and student are there. Prints one JSON line last and writes
`benchmarks/results/cross_tokenizer.json`. Rows: method, seed, metric, value; and AMMD minus each other method, with a
95 % interval over seeds and prompts.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cells import Unfinished
from comparison import Comparison, comparisons, machines_of, results_of, rows_of
from document import publish
from methods import METHODS, REFERENCE
from parts import run
from two_vocabularies import Sizes, TwoVocabularies, prepare, read_facts

RIVALS = ("seqkd", "forward_kl", "gkd")


def main() -> None:
    """Compute what is missing, then compare."""
    arguments = parse_arguments()
    sizes = Sizes(
        teacher_steps=arguments.teacher_steps, train_prompts=arguments.texts, judged_prompts=arguments.judged
    )
    prepare(arguments.work, arguments.data, sizes)
    comparison = Comparison(
        setting=TwoVocabularies(
            work=arguments.work, steps=arguments.steps, learning_rates=tuple(arguments.rates)
        ),
        methods={name: METHODS[name] for name in (*arguments.methods, REFERENCE)},
        seeds=arguments.seeds,
        reference=REFERENCE,
        in_time=False,
        max_cells=arguments.max_cells,
    )
    try:
        results = results_of(comparison)
    except Unfinished as exc:
        print(exc, file=sys.stderr)
        return
    publish(
        "cross_tokenizer",
        rows_of(results) + comparisons(results, reference=REFERENCE),
        trained_on=machines_of(results),
        settings=read_facts(arguments.work)
        | {
            "steps": arguments.steps,
            "learning_rates": arguments.rates,
            "methods": {name: dict(method.objective) for name, method in comparison.methods.items()},
        },
    )


def parse_arguments() -> argparse.Namespace:
    """Return the command line's options."""
    sizes = Sizes()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path, metavar="WORK_DIR")
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=RIVALS, default=list(RIVALS), help="beside AMMD")
    parser.add_argument("--rates", type=float, nargs="+", default=list(TwoVocabularies.RATES))
    parser.add_argument("--steps", type=int, default=TwoVocabularies.STEPS, help="after the shared start")
    parser.add_argument("--teacher-steps", type=int, default=sizes.teacher_steps)
    parser.add_argument("--texts", type=int, default=sizes.train_prompts, help="of the teacher's")
    parser.add_argument("--judged", type=int, default=sizes.judged_prompts, help="prompts, of dev and test")
    parser.add_argument("--max-cells", type=int, metavar="N", help="end after N of them")
    return parser.parse_args()


if __name__ == "__main__":
    run(main)
