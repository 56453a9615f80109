"""A comparison of methods in one setting: learning rates chosen, trained with every seed, judged, compared."""

from __future__ import annotations

import hashlib
import json
import math
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from cells import Cells, Result, in_workers
from methods import Method

from ammd.distill.device import describe_device
from ammd.distill.policy import Policy
from ammd.distill.settings import DistillSettings
from ammd.errors import DistillError
from ammd.machine import describe_machine
from ammd.runtime.bootstrap import paired_interval

Metrics = dict[str, list[float]]  # by `set/metric`, one number a text; nats where it is one a byte
_TUNING_SEED = 100  # none of those that are reported
# No method's own loss on both kinds of text; likelihoods where two vocabularies have no such distance.
_CHOICE = ("own_jsd_nats", "teacher_jsd_nats", "own_nats_per_byte", "teacher_nats_per_byte")
_PER_BYTE = "_nats_per_byte"  # a ratio of sums over the texts: nats, over the metric of the same texts' bytes
_COST_ROUNDS, _COST_STEPS = 3, 12


class Setting(Protocol):
    """Teacher, texts, warm start and judges that all methods share."""

    name: str
    work: Path  # prepared
    steps: int  # of the second phase, at equal steps
    learning_rates: Sequence[float]
    threads: int  # of each worker

    def prepared(self, texts: str) -> Path:
        """Return the prepared folder whose off-policy texts are by the teacher, or `given` with the data."""
        ...

    def settings(self, *, objective: Mapping[str, Any], seed: int) -> DistillSettings:
        """Return the settings of a training."""
        ...

    def judge(self, student: Policy, *, part: str, seed: int) -> Metrics:
        """Return what the student is worth on the `dev` or the `test` part."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What is compared: methods by name, seeds, and the method that the others are compared with."""

    setting: Setting
    methods: Mapping[str, Method]
    seeds: Sequence[int]
    reference: str
    in_time: bool  # also at equal seconds: those that the reference takes
    max_cells: int | None = None  # that a worker computes before `Unfinished`


def run_comparison(comparison: Comparison, *, jobs: int) -> list[Result]:
    """Return every judged cell, computing what is missing in as many workers as asked for."""
    return in_workers(jobs, results_of, comparison)


def results_of(comparison: Comparison) -> list[Result]:
    """Return every judged cell, computing what no other worker has or is at.

    Raises:
        Unfinished: Some are missing after `max_cells` more have been computed.
    """
    import torch

    setting, methods = comparison.setting, comparison.methods
    torch.set_num_threads(setting.threads)
    cells = Cells(setting.work / "cells", at_most=comparison.max_cells)
    rates = tuned_rates(cells, setting, methods)
    budgets = {"steps": dict.fromkeys(methods, setting.steps)}
    if comparison.in_time:
        budgets["seconds"] = steps_in_time(cells, comparison)
    wanted: list[tuple[str, dict[str, Any]]] = []
    for budget, steps in budgets.items():
        for seed in comparison.seeds:
            for name, method in methods.items():
                plan = {"steps": steps[name], "lr": rates[name], "seed": seed, "part": "test"}
                key = cell_name(name, method, plan)
                wanted.append((key, plan | {"budget": budget, "method": name}))
    plans = dict(wanted)

    def compute(key: str) -> Result:
        return train_and_judge(setting, methods[plans[key]["method"]], plans[key])

    found = cells.compute(plans, compute)
    return [plan | found[key] for key, plan in wanted]


def steps_in_time(cells: Cells, comparison: Comparison) -> dict[str, int]:
    """Return the steps of each method that take as long as the reference's."""
    costs = costs_of(cells, comparison)["step_s"]
    seconds = comparison.setting.steps * costs[comparison.reference]
    return {name: max(1, round(seconds / cost)) for name, cost in costs.items()}


def costs_of(cells: Cells, comparison: Comparison) -> Result:
    """Return the cell of seconds a step; maybe on another machine than the trainings: a user's."""
    methods = comparison.methods
    whole = json.dumps([[name, dict(one.objective)] for name, one in methods.items()])
    name = f"costs-{hashlib.sha256(whole.encode()).hexdigest()[:10]}"
    return cells.compute([name], lambda _name: step_costs(comparison.setting, methods))[name]


def tuned_rates(cells: Cells, setting: Setting, methods: Mapping[str, Method]) -> dict[str, float]:
    """Return, for each method, the learning rate of the grid after which its student is nearest to the teacher."""
    plans: dict[str, dict[str, Any]] = {}
    names: dict[str, str] = {}
    for name, method in methods.items():
        for lr in setting.learning_rates:
            plan = {"steps": setting.steps, "lr": lr, "seed": _TUNING_SEED, "part": "dev"}
            key = cell_name(name, method, plan)
            plans[key], names[key] = plan, name
    found = cells.compute(plans, lambda key: train_and_judge(setting, methods[names[key]], plans[key]))

    def distance(key: str) -> float:
        metrics = found[key]["metrics"]
        chosen = [mean_of(metrics, name) for name in metrics if name.endswith(_CHOICE)]
        return sum(chosen) if chosen else math.inf

    nearest = {name: min((key for key in plans if names[key] == name), key=distance) for name in methods}
    return {name: float(plans[key]["lr"]) for name, key in nearest.items()}


def cell_name(name: str, method: Method, plan: Mapping[str, Any]) -> str:
    """Return a name that changes with anything that changes the result."""
    whole = json.dumps([dict(method.objective), method.texts, plan], sort_keys=True)
    return f"{name}/{plan['part']}-{plan['seed']}-{hashlib.sha256(whole.encode()).hexdigest()[:10]}"


def step_costs(setting: Setting, methods: Mapping[str, Method]) -> Result:
    """Return seconds a step of each method, all timed in turn while other workers wait, median of the rounds."""
    seen: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(_COST_ROUNDS):
        for name, method in methods.items():
            plan = {"steps": _COST_STEPS, "lr": setting.learning_rates[0], "seed": _TUNING_SEED}
            _, seconds = train(setting, method, plan)
            seen[name].append(seconds / _COST_STEPS)
    medians = {name: statistics.median(values) for name, values in seen.items()}
    return {"step_s": medians, "rounds": seen, "machine": describe_machine()}


def train(setting: Setting, method: Method, plan: Mapping[str, Any]) -> tuple[Policy, float]:
    """Train one student from the shared warm start; return it and the seconds of its steps."""
    from ammd.distill.training import Training

    objective = dict(method.objective) | {"steps": plan["steps"], "lr": plan["lr"]}
    settings = setting.settings(objective=objective, seed=plan["seed"])
    with tempfile.TemporaryDirectory() as folder:
        curves = Path(folder) / "curves.jsonl"
        training = Training(
            prepared=setting.prepared(method.texts),
            student=setting.work / "warm",
            settings=settings,
            curves=curves,
        )
        training.skip_texts(settings.warm.steps)
        training.second(settings.objective)
        last = json.loads(curves.read_text(encoding="utf-8").splitlines()[-1])
    return training.student, float(last["seconds"])


def train_and_judge(setting: Setting, method: Method, plan: Mapping[str, Any]) -> Result:
    """Return the metrics of one training, or why it ended before its time."""
    try:
        student, seconds = train(setting, method, plan)
    except DistillError as exc:
        return {"metrics": {}, "failure": str(exc), "seconds": None}
    metrics = setting.judge(student, part=plan["part"], seed=plan["seed"])
    trained_on = {"cpu": describe_machine()["cpu"], "device": describe_device(student.device)}
    return {"metrics": metrics, "failure": None, "seconds": seconds, "trained_on": trained_on}


def rows_of(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Return one flat row for each method, budget, seed, set and metric."""
    rows = []
    for result in results:
        named = {key: result[key] for key in ("method", "budget", "seed", "steps", "lr", "seconds")}
        if result["failure"]:
            rows.append(named | {"set": None, "metric": "failure", "value": result["failure"]})
        for name in result["metrics"]:
            judged_on, _, metric = name.partition("/")
            rows.append(
                named | {"set": judged_on, "metric": metric, "value": mean_of(result["metrics"], name)}
            )
    return rows


def mean_of(metrics: Metrics, name: str) -> float:
    """Return a metric's mean over the texts, or over their bytes where it is one a byte."""
    over = bytes_of(metrics, name)
    return sum(metrics[name]) / sum(over) if over else statistics.mean(metrics[name])


def bytes_of(metrics: Metrics, name: str) -> list[float] | None:
    """Return the bytes of each text that a metric is one a byte of; None for any other."""
    return metrics[f"{name.removesuffix(_PER_BYTE)}_bytes"] if name.endswith(_PER_BYTE) else None


def bytes_of_all(by_seed: Mapping[int, Metrics], seeds: Sequence[int], name: str) -> list[list[float]] | None:
    """Return `bytes_of` for each seed."""
    found = [over for seed in seeds if (over := bytes_of(by_seed[seed], name))]
    return found or None


def machines_of(results: Sequence[Result]) -> list[dict[str, str]]:
    """Return each machine that trained some of the cells, where they tell it."""
    machines = [found["trained_on"] for found in results if "trained_on" in found]
    return [one for index, one in enumerate(machines) if one not in machines[:index]]


def comparisons(results: Sequence[Result], *, reference: str) -> list[dict[str, Any]]:
    """Return the reference minus each other method, with intervals."""
    whole: dict[tuple[str, str], dict[int, Metrics]] = {}
    for result in results:
        if result["metrics"]:
            whole.setdefault((result["method"], result["budget"]), {})[result["seed"]] = result["metrics"]
    rows = []
    for (name, budget), by_seed in whole.items():
        base = whole.get((reference, budget), {})
        seeds = sorted(base.keys() & by_seed.keys())
        if name == reference or not seeds:
            continue
        for key in by_seed[seeds[0]]:
            judged_on, _, metric = key.partition("/")
            mean, low, high = paired_interval(
                [base[seed][key] for seed in seeds],
                [by_seed[seed][key] for seed in seeds],
                generator=np.random.default_rng(0),
                first_over=bytes_of_all(base, seeds, key),
                second_over=bytes_of_all(by_seed, seeds, key),
            )
            named = {"method": reference, "minus": name, "budget": budget, "seeds": len(seeds)}
            found = {"difference": mean, "low": low, "high": high}
            rows.append(named | {"set": judged_on, "metric": metric} | found)
    return rows
