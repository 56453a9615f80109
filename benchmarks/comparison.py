"""A comparison of methods in the small setting: learning rates chosen, trained with every seed, judged, compared."""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import character_level
from bootstrap import paired_interval
from cells import Cells, Result
from methods import Method

from ammd.errors import DistillError

STEPS = 100
LEARNING_RATES = (1.5e-3, 4.5e-3, 1.35e-2)
_TUNING_SEED = 100  # none of those that are reported
_CHOICE = ("own_jsd_nats", "teacher_jsd_nats")  # no method's own loss on both kinds of text
_DEV_TEXTS = 256  # that choose a learning rate
_COST_ROUNDS, _COST_STEPS = 3, 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What is compared: methods by name, seeds, and the method that the others are compared with."""

    work: Path  # prepared
    methods: Mapping[str, Method]
    seeds: Sequence[int]
    reference: str
    in_time: bool  # also at equal seconds: those that the reference takes


def run_comparison(comparison: Comparison, *, jobs: int) -> list[Result]:
    """Return every judged cell, computing what is missing in as many workers as asked for."""
    if jobs > 1:
        with multiprocessing.get_context("spawn").Pool(jobs) as pool:
            pool.map(results_of, [comparison] * jobs, chunksize=1)
    return results_of(comparison)


def results_of(comparison: Comparison) -> list[Result]:
    """Return every judged cell, computing what no other worker has or is at."""
    import torch

    torch.set_num_threads(1)  # a cell is one worker's; the networks are too small for two
    work, methods = comparison.work, comparison.methods
    cells = Cells(work / "cells")
    rates = {name: tuned_rate(cells, work, name, method) for name, method in methods.items()}
    results = _judged(cells, comparison, rates, "steps", dict.fromkeys(methods, STEPS))
    if comparison.in_time:
        results += _judged(cells, comparison, rates, "seconds", steps_in_time(cells, comparison))
    return results


def _judged(
    cells: Cells, comparison: Comparison, rates: Mapping[str, float], budget: str, steps: Mapping[str, int]
) -> list[Result]:
    """Return the cells of one budget, seed by seed."""
    plans: dict[str, dict[str, Any]] = {}
    for seed in comparison.seeds:
        for name, method in comparison.methods.items():
            plan = {"steps": steps[name], "lr": rates[name], "seed": seed, "part": "test"}
            plans[cell_name(name, method, plan)] = plan | {"method": name}

    def compute(key: str) -> Result:
        plan = plans[key]
        return train_and_judge(comparison.work, comparison.methods[plan["method"]], plan)

    found = cells.compute(plans, compute)
    return [plan | {"budget": budget} | found[key] for key, plan in plans.items()]


def steps_in_time(cells: Cells, comparison: Comparison) -> dict[str, int]:
    """Return the steps of each method that take as long as the reference's."""
    whole = json.dumps([[name, dict(one.objective)] for name, one in comparison.methods.items()])
    name = f"costs-{hashlib.sha256(whole.encode()).hexdigest()[:10]}"
    found = cells.compute([name], lambda _name: step_costs(comparison.work, comparison.methods))
    costs = found[name]["step_s"]
    return {name: max(1, round(STEPS * costs[comparison.reference] / cost)) for name, cost in costs.items()}


def tuned_rate(cells: Cells, work: Path, name: str, method: Method) -> float:
    """Return the learning rate of the grid after which a method's student is nearest to the teacher."""
    plans = {}
    for lr in LEARNING_RATES:
        plan = {"steps": STEPS, "lr": lr, "seed": _TUNING_SEED, "part": "dev"}
        plans[cell_name(name, method, plan)] = plan
    found = cells.compute(plans, lambda key: train_and_judge(work, method, plans[key]))

    def distance(key: str) -> float:
        metrics = found[key]["metrics"]
        return sum(statistics.mean(metrics[name]) for name in _CHOICE) if metrics else math.inf

    return float(plans[min(plans, key=distance)]["lr"])


def cell_name(name: str, method: Method, plan: Mapping[str, Any]) -> str:
    """Return a name that changes with anything that changes the result."""
    whole = json.dumps([dict(method.objective), method.texts, plan], sort_keys=True)
    return f"{name}/{plan['part']}-{plan['seed']}-{hashlib.sha256(whole.encode()).hexdigest()[:10]}"


def step_costs(work: Path, methods: Mapping[str, Method]) -> Result:
    """Return seconds a step of each method, all timed in turn, median of the rounds."""
    seen: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(_COST_ROUNDS):
        for name, method in methods.items():
            plan = {"steps": _COST_STEPS, "lr": LEARNING_RATES[0], "seed": _TUNING_SEED}
            _, seconds = train(work, method, plan)
            seen[name].append(seconds / _COST_STEPS)
    return {"step_s": {name: statistics.median(values) for name, values in seen.items()}, "rounds": seen}


def train(work: Path, method: Method, plan: Mapping[str, Any]) -> tuple[Any, float]:
    """Train one student from the shared warm start; return its training and the seconds of its steps."""
    from ammd.distill.training import Training

    objective = dict(method.objective) | {"steps": plan["steps"], "lr": plan["lr"]}
    settings = character_level.settings(objective=objective, seed=plan["seed"])
    with tempfile.TemporaryDirectory() as folder:
        curves = Path(folder) / "curves.jsonl"
        training = Training(
            prepared=work / ("prepared" if method.texts == "teacher" else "prepared-given"),
            student=work / "warm",
            settings=settings,
            curves=curves,
        )
        training.skip_texts(settings.warm.steps)
        training.second(settings.objective)
        last = json.loads(curves.read_text(encoding="utf-8").splitlines()[-1])
    return training, float(last["seconds"])


def train_and_judge(work: Path, method: Method, plan: Mapping[str, Any]) -> Result:
    """Return the metrics of one training, or why it ended before its time."""
    import torch
    from imitation import measure_imitation

    from ammd.distill.checkpoint import load_model
    from ammd.distill.policy import Policy
    from ammd.distill.prompts import read_examples

    try:
        training, seconds = train(work, method, plan)
    except DistillError as exc:
        return {"metrics": {}, "failure": str(exc), "seconds": None}
    texts = [(text.prompt_ids, text.response_ids) for text in read_examples(work / f"{plan['part']}.jsonl")]
    texts = texts[:_DEV_TEXTS] if plan["part"] == "dev" else texts
    teacher = Policy(load_model(work / "prepared" / "teacher", dtype=torch.float32))
    metrics, _ = measure_imitation(
        training.student, teacher, texts, sampling=character_level.sampling(), seed=plan["seed"]
    )
    return {"metrics": metrics, "failure": None, "seconds": seconds}


def rows_of(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Return one flat row for each method, budget, seed and metric."""
    rows = []
    for result in results:
        named = {key: result[key] for key in ("method", "budget", "seed", "steps", "lr", "seconds")}
        named |= {"set": "pride-and-prejudice"}
        if result["failure"]:
            rows.append(named | {"metric": "failure", "value": result["failure"]})
        for metric, values in result["metrics"].items():
            rows.append(named | {"metric": metric, "value": statistics.mean(values)})
    return rows


def comparisons(results: Sequence[Result], *, reference: str) -> list[dict[str, Any]]:
    """Return the reference minus each other method, with intervals."""
    whole: dict[tuple[str, str], dict[int, Mapping[str, list[float]]]] = {}
    for result in results:
        if result["metrics"]:
            whole.setdefault((result["method"], result["budget"]), {})[result["seed"]] = result["metrics"]
    rows = []
    for (name, budget), by_seed in whole.items():
        base = whole.get((reference, budget), {})
        seeds = sorted(base.keys() & by_seed.keys())
        if name == reference or not seeds:
            continue
        for metric in by_seed[seeds[0]]:
            mean, low, high = paired_interval(
                [base[seed][metric] for seed in seeds], [by_seed[seed][metric] for seed in seeds]
            )
            rows.append(
                {
                    "method": reference,
                    "minus": name,
                    "budget": budget,
                    "seeds": len(seeds),
                    "set": "pride-and-prejudice",
                    "metric": metric,
                    "difference": mean,
                    "low": low,
                    "high": high,
                }
            )
    return rows
