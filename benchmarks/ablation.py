"""What each part of AMMD is worth: one setting of it changed at a time, in either setting of `objectives`.

    python benchmarks/ablation.py small WORK_DIR --data FOLDER [--seeds 0 1 2] [--groups ...] [--jobs 2]
    python benchmarks/ablation.py instructions WORK_DIR --data FOLDER [--seeds 0 1 2] [--groups ...] [--jobs 1]
        [--set prepare.teacher=FOLDER]...

WORK_DIR may be that of `objectives.py`; what is prepared there is shared. Every arm's learning rate is chosen like a
method's, of the grid that is stated. In the real setting some rivals are arms as well, so that what an arm changes can
be held against what they are ahead by.

Prints one JSON line last and writes `benchmarks/results/ablation.json`, where groups that were not asked for stay as
they are. Rows as in `objectives`, with `group`; each group has the base's rows of its own, from the same prepared
models, and the base minus each arm with a 95 % interval over seeds and prompts.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from comparison import Comparison, comparisons, machines_of, rows_of, run_comparison
from document import kept, publish, revision
from methods import METHODS, REFERENCE, Method
from parts import run
from prepared_setting import SETTINGS, Prepared, prepared_setting

from ammd.machine import available_cores, describe_machine

Groups = Mapping[str, Mapping[str, Mapping[str, Any]]]

# The recipe's defaults are the base of the small setting (off and on, closed form, no long view), the comparison's own
# AMMD that of the real one.
BASES: Mapping[str, Mapping[str, Any]] = {
    "small": {"kind": "ammd"},
    "instructions": METHODS[REFERENCE].objective,
}
# The third rate of the small setting's grid was the worst for every form of the game; of the real one's, most methods
# chose the lowest.
_RATES: Mapping[str, Sequence[float]] = {"small": (5e-4, 1.5e-3), "instructions": (4e-5, 7.5e-5, 1.5e-4)}
_ZERO: Mapping[str, Any] = {"kind": "linear", "start": "zero", "ascents": 8, "min_share": 0.0}
_LOG_RATIO: Mapping[str, Any] = {"kind": "lowrank", "start": "log_ratio"}
_SMALL: Groups = {
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
_REAL: Groups = {
    "sides": {
        "off only": {"on_weight": 0.0},
        "on only": {"student_share": 1.0},
    },
    "discount": {f"discount {value}": {"discount": value} for value in (0.0, 0.9)},
    "mixture": {f"mixture {value}": {"critic_mixture": value} for value in (0.1, 0.3)},
    "kd": {f"kd_weight {value}": {"kd_weight": value} for value in (0.1, 0.3)},
    "rivals": {name: METHODS[name].objective for name in ("gkd", "distillm")},
}
GROUPS: Mapping[str, Groups] = {"small": _SMALL, "instructions": _REAL}


def main() -> None:
    """Compute what is missing, in as many workers as asked for, then compare."""
    arguments = parse_arguments()
    name = arguments.setting
    setting = prepared_setting(
        name, arguments.work, data=arguments.data, overrides=arguments.set, jobs=arguments.jobs
    )
    groups = {group: GROUPS[name][group] for group in arguments.groups}
    arms = {arm: objective_of(name, change) for group in groups.values() for arm, change in group.items()}
    comparison = Comparison(
        setting=with_rates(setting, _RATES[name]),
        methods={"base": Method(objective=BASES[name])}
        | {arm: Method(objective=objective) for arm, objective in arms.items()},
        seeds=arguments.seeds,
        reference="base",
        in_time=False,
    )
    results = run_comparison(comparison, jobs=arguments.jobs)
    rows = rows_of(results) + comparisons(results, reference="base")
    facts = {
        "machine": describe_machine(),
        "trained_on": machines_of(results),
        "revision": revision(),
        "steps": setting.steps,
        "learning_rates": _RATES[name],
        "base": BASES[name],
    }
    keys = {f"{name}/{group}": group for group in groups}
    others, settings = kept("ablation", "part", *keys)
    found = [
        {"part": key, "setting": name, "group": group} | row
        for key, group in keys.items()
        for row in rows
        if row.get("minus", row["method"]) in ("base", *groups[group])
    ]
    parts = {key: facts | {"arms": {arm: arms[arm] for arm in groups[group]}} for key, group in keys.items()}
    publish("ablation", others + found, settings=settings | parts)


def objective_of(setting: str, change: Mapping[str, Any]) -> dict[str, Any]:
    """Return an arm's objective: the base with a change, or another method whole."""
    return dict(change) if "kind" in change else {**BASES[setting], **change}


def with_rates(setting: Prepared, rates: Sequence[float]) -> Prepared:
    """Return the setting with another grid of learning rates."""
    return dataclasses.replace(setting, learning_rates=rates)


def parse_arguments() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("setting", choices=SETTINGS)
    parser.add_argument("work", type=Path, metavar="WORK_DIR")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="needed until WORK_DIR is prepared")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--groups", nargs="+", choices=sorted({*_SMALL, *_REAL}))
    parser.add_argument("--jobs", type=int, default=available_cores())
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="of the recipe that is prepared from"
    )
    arguments = parser.parse_args()
    arguments.groups = arguments.groups or list(GROUPS[arguments.setting])
    if unknown := set(arguments.groups) - GROUPS[arguments.setting].keys():
        parser.error(f"the {arguments.setting} setting has no group {', '.join(sorted(unknown))}")
    return arguments


if __name__ == "__main__":
    run(main)
