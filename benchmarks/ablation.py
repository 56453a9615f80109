"""What each part of AMMD is worth: one setting changed at a time, in the small setting of `objectives`.

    python benchmarks/ablation.py WORK_DIR --data FOLDER [--seeds 0 1 2] [--groups ...] [--jobs 2]

WORK_DIR may be that of `objectives.py small`; what is prepared there is shared. Every arm's learning rate is chosen
like a method's, of two. Prints one JSON line last and writes `benchmarks/results/ablation.json`; rows as in
`objectives`, with `group`, and the base minus each arm with a 95 % interval over seeds and prompts.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import character_level
from character_level import CharacterLevel
from comparison import Comparison, comparisons, rows_of, run_comparison
from document import publish
from methods import Method
from parts import run

from ammd.machine import available_cores

BASE: Mapping[str, Any] = {"kind": "ammd"}  # the recipe's defaults: off and on, closed form, no long view
_RATES = (5e-4, 1.5e-3)  # the third of the setting's grid was the worst for every form of the game
_ZERO: Mapping[str, Any] = {"kind": "linear", "start": "zero", "ascents": 8, "min_share": 0.0}
_LOG_RATIO: Mapping[str, Any] = {"kind": "lowrank", "start": "log_ratio"}
GROUPS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "sides": {
        "off only": {"on_weight": 0.0},
        "on only": {"student_share": 1.0},
        "on twice": {"on_weight": 2.0},
    },
    "discount": {f"discount {value}": {"discount": value} for value in (0.25, 0.5, 0.9)},
    "critic": {
        "lowrank from log-ratio": {"critic": _LOG_RATIO},
        "lowrank from log-ratio, discount 0.25": {"critic": _LOG_RATIO, "discount": 0.25},
        "lowrank from log-ratio, 1 ascent": {"critic": {**_LOG_RATIO, "ascents": 1}},
        "lowrank from log-ratio, 8 ascents": {"critic": {**_LOG_RATIO, "ascents": 8}},
        "lowrank from log-ratio, decay 0.1": {"critic": {**_LOG_RATIO, "weight_decay": 0.1}},
        "lowrank from log-ratio, student": {"critic": {**_LOG_RATIO, "inputs": "student"}},
        "mlp from log-ratio": {"critic": {"kind": "mlp", "start": "log_ratio"}},
        "linear from difference": {"critic": {"kind": "linear"}},
        "linear from zero": {"critic": _ZERO},
        "linear from zero, student": {"critic": {**_ZERO, "inputs": "student"}},
        "linear from zero, teacher": {"critic": {**_ZERO, "inputs": "teacher"}},
    },
    "mixture": {f"mixture {value}": {"critic_mixture": value} for value in (0.1, 0.3, 0.7)},
    "regulariser": {
        "penalty 0.3": {"critic_penalty": 0.3},
        "penalty 3": {"critic_penalty": 3.0},
        "bound 0.3": {"critic_bound": 0.3},
    },
    "kd": {f"kd_weight {value}": {"kd_weight": value} for value in (0.1, 0.3)},
    "estimator": {
        "immediate, discount 0.25": {"estimator": "immediate", "discount": 0.25},
        "sampled": {"estimator": "sampled"},
    },
    "freshness": {"texts of 1 step": {"rollout_reuse_steps": 1}},
}


def main() -> None:
    """Compute what is missing, in as many workers as asked for, then compare."""
    arguments = parse_arguments()
    if arguments.data:
        character_level.prepare(arguments.work, arguments.data / "text-books" / "pride-and-prejudice.jsonl")
    group_of = {arm: group for group in arguments.groups for arm in GROUPS[group]}
    methods = {"base": Method(objective=BASE)} | {
        arm: Method(objective={**BASE, **GROUPS[group][arm]}) for arm, group in group_of.items()
    }
    setting = CharacterLevel(work=arguments.work, learning_rates=_RATES)
    comparison = Comparison(
        setting=setting, methods=methods, seeds=arguments.seeds, reference="base", in_time=False
    )
    results = run_comparison(comparison, jobs=arguments.jobs)
    rows = rows_of(results) + comparisons(results, reference="base")
    publish(
        "ablation",
        [row | {"group": group_of.get(row.get("minus", row["method"]), "base")} for row in rows],
        steps=setting.steps,
        learning_rates=setting.learning_rates,
        arms={name: dict(method.objective) for name, method in methods.items()},
    )


def parse_arguments() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path, metavar="WORK_DIR")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="needed until WORK_DIR is prepared")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--groups", nargs="+", choices=list(GROUPS), default=list(GROUPS))
    parser.add_argument("--jobs", type=int, default=available_cores())
    return parser.parse_args()


if __name__ == "__main__":
    run(main)
