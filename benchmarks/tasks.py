"""AMMD beside SFT, KD and GKD on language tasks: the packaged recipe of one task of each kind, judged by its metrics.

    python benchmarks/tasks.py WORK_DIR --data FOLDER [--tasks scitldr tatoeba ...] [--methods ...] [--seeds 0 1 2]
        [--rates 1e-4 3e-4 1e-3] [--rows 200] [--tuning-rows 128] [--jobs 1] [--max-cells N] [--set KEY=VALUE]...

A task's recipe gives teacher, student, texts and steps; `--set` changes it. One warm start serves all methods and
seeds; from it each is trained for the recipe's steps, on the same texts with the task's own right answers. A method's
learning rate is the one after which its student is best on rows of the train split that nobody was trained on; where
that is the highest of `--rates`, the next higher ones are tried until it is not.
Students, warm start and teacher answer the same rows of the test split, as `ammd eval --task` asks them, and others of
the train split that nobody was trained on, if there are any: a test split can be of another kind, as Tatoeba's here is
of longer sentences. Where a task asks for the likeliest text, one that is drawn at temperature 1 is judged as well:
the likeliest shows a student's first choice, the other all that it holds likely.

Each training with its scores is a cell, kept in WORK_DIR, so an interrupted comparison goes on; with `--max-cells N`
each worker ends after N of them, and the last call publishes. Prints one JSON line last and writes
`benchmarks/results/tasks.json`. Rows: task, split, method, seed, metric, value; and AMMD minus each other method, with
a 95 % interval over the task's rows and the seeds, of training and of sampling where answers are drawn.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cells import Cells, Result, Unfinished, in_workers
from comparison import machines_of
from document import publish
from methods import METHODS
from parts import run, write_part

from ammd.artifact import hash_weights
from ammd.distill.device import choose_device, describe_device
from ammd.distill.prompts import read_examples
from ammd.errors import DistillError
from ammd.machine import available_cores, describe_machine
from ammd.pipeline.recipe import Recipe, load_recipe
from ammd.progress import progress
from ammd.runtime.artifact_ref import ArtifactRef
from ammd.runtime.model_file import read_model_file
from ammd.runtime.task_run import TaskQuestions, load_questions, score_task
from ammd.runtime.task_scores import METRICS as TASK_METRICS
from ammd.runtime.task_scores import TaskMetric, compare_metric, summarize
from ammd.task import TaskKind
from ammd.task_data import TaskRow, digest_rows

REFERENCE = "ammd"  # with the objective of the task's recipe
RIVALS = ("sft", "forward_kl", "gkd")
UNTRAINED = ("teacher", "warm")
TASKS = ("dolly-t5", "scitldr-t5", "tatoeba-t5", "strategyqa-t5")
_TUNING_SEED = 100  # none of those that are reported
_OF_STUDENT_TEXTS = (
    "temperature",
    "rollout_reuse_steps",
)  # as the recipe has them, for every method that writes some

Plan = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSetting:
    """A task's recipe, prepared and warmed up in `folder`."""

    recipe: Recipe
    folder: Path
    dev: TaskQuestions  # of the train split, to choose learning rates by
    judged: Mapping[str, TaskQuestions]  # of the test split, and `unseen` ones of train; `... drawn`
    further: Mapping[str, TaskQuestions]  # of the train split, to choose a recipe's settings by

    def objective(self, plan: Plan) -> dict[str, Any]:
        """Return the second phase of a method, in the form that a recipe has it."""
        own = self.recipe.distill.objective.model_dump()
        shared = {"steps": own["steps"], "lr": plan["lr"]}
        if plan["method"] == REFERENCE:
            return own | shared | plan.get("settings", {})
        objective = dict(METHODS[plan["method"]].objective)
        if objective.get("student_share"):
            shared |= {key: own[key] for key in _OF_STUDENT_TEXTS}
        return objective | shared

    def asked(self, part: str) -> Mapping[str, TaskQuestions]:
        """Return the questions of a part, by the name under which a cell has the answers' scores."""
        return {"dev": {"dev": self.dev}, "test": self.judged, "further": self.further}[part]

    @property
    def metrics(self) -> tuple[TaskMetric, ...]:
        """Return what the task is judged by, the first of them first."""
        return TASK_METRICS[self.kind]

    @property
    def kind(self) -> TaskKind:
        """Return what the task is."""
        return self.dev.task.kind


def main() -> None:
    """Compute what is missing, in as many workers as asked for, then compare."""
    arguments = parse_arguments()
    settings = {task: setting_of(task, arguments) for task in arguments.tasks}
    try:
        results = in_workers(arguments.jobs, results_of, settings, arguments)
    except Unfinished as exc:
        print(exc, file=sys.stderr)
        return
    rows = [row for task, setting in settings.items() for row in rows_of(task, setting, results)]
    facts = {
        task: {
            "questions": {split: questions.as_json() for split, questions in setting.judged.items()},
            "recipe": described(setting.recipe),
            "methods": {
                method: setting.objective({"method": method, "lr": None})
                for method in (REFERENCE, *arguments.methods)
            },
        }
        for task, setting in settings.items()
    }
    publish("tasks", rows, settings=facts, rates=list(arguments.rates), trained_on=machines_of(results))


def described(recipe: Recipe) -> dict[str, Any]:
    """Return what students are made of, without the folders of this machine."""
    facts = recipe.model_dump(mode="json", include={"prepare", "distill"})
    teacher = Path(recipe.prepare.teacher)
    if teacher.exists():
        facts["prepare"] |= {"teacher": teacher.name, "teacher_sha256": hash_weights(teacher)}
    del facts["prepare"]["data"]
    return facts


def parse_arguments() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work", type=Path, metavar="WORK_DIR")
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), help="names of packaged recipes")
    parser.add_argument("--methods", nargs="+", choices=RIVALS, default=list(RIVALS), help="beside AMMD")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-4, 3e-4, 1e-3])
    parser.add_argument("--rows", type=int, default=200, help="of each split that is judged, at most")
    parser.add_argument("--tuning-rows", type=int, default=128, help="to choose learning rates by")
    parser.add_argument("--jobs", type=int, default=1, help="workers")
    parser.add_argument("--max-cells", type=int, metavar="N", help="each worker ends after N of them")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of every recipe")
    return parser.parse_args()


def setting_of(task: str, arguments: argparse.Namespace) -> TaskSetting:
    """Return a task's setting, prepared and warmed up unless it is there."""
    recipe = load_recipe(Path(task), overrides=[f"data={arguments.data}", *arguments.set])
    name, data = str(recipe.prepare.task), arguments.data
    all_rows = load_questions(name, data=data, split="train")
    most = min(len(all_rows.rows) - arguments.tuning_rows, recipe.prepare.max_prompts or len(all_rows.rows))
    recipe = recipe.model_copy(update={"prepare": recipe.prepare.model_copy(update={"max_prompts": most})})
    folder = arguments.work / task
    if not (folder / "start").is_dir():
        write_part("start", folder, lambda start: prepare(recipe, start))
    seen = {example.prompt for example in read_examples(folder / "start" / "prepared" / "train.jsonl")}
    unseen = tuple(row for row in all_rows.rows if row.prompt not in seen)
    dev, rest = unseen[: arguments.tuning_rows], unseen[arguments.tuning_rows :]

    def of_train(rows: tuple[TaskRow, ...]) -> TaskQuestions:
        return replace(all_rows, rows=rows, digest=digest_rows(all_rows.task, "train", rows, data=data))

    judged = with_drawn("test", load_questions(name, data=data, limit=arguments.rows))
    if others := rest[: arguments.rows]:
        judged |= with_drawn("unseen", of_train(others))
    return TaskSetting(
        recipe=recipe,
        folder=folder / "start",
        dev=replace(all_rows, rows=dev),
        judged=judged,
        further=with_drawn("further", of_train(rest[arguments.rows :][: arguments.rows] or dev)),
    )


def with_drawn(split: str, questions: TaskQuestions) -> dict[str, TaskQuestions]:
    """Return questions under their split's name, and where they ask for the likeliest text, for a drawn one as well."""
    if questions.task.temperature or questions.task.kind is TaskKind.CHOICE:
        return {split: questions}
    drawn = questions.task.model_copy(update={"temperature": 1.0, "seeds": (0,)})
    return {split: questions, f"{split} drawn": replace(questions, task=drawn)}


def prepare(recipe: Recipe, folder: Path) -> None:
    """Write teacher, first student and texts, and the student after the warm start."""
    import torch

    from ammd.distill import prepare as prepare_stage
    from ammd.distill.training import Training

    (folder / "prepared").mkdir()
    prepare_stage.run(prepare_stage.PrepareInputs(), recipe.prepare, folder / "prepared")
    training = Training(
        prepared=folder / "prepared",
        student=folder / "prepared" / "student",
        settings=recipe.distill,
        curves=folder / "curves.jsonl",
    )
    training.warm(recipe.distill.warm)
    training.save(folder / "warm", dtype=torch.float32)


def results_of(settings: Mapping[str, TaskSetting], arguments: argparse.Namespace) -> list[Result]:
    """Return every judged cell, computing what no other worker has or is at.

    Raises:
        Unfinished: As many as this worker may have been computed, and others are missing.
    """
    import torch

    torch.set_num_threads(max(1, available_cores() // arguments.jobs))
    cells = Cells(arguments.work / "cells", at_most=arguments.max_cells)
    methods = [REFERENCE, *arguments.methods]
    best = tune(cells, settings, methods, arguments.rates)
    plans = [
        {"task": task, "method": method, "seed": seed, "lr": rate, "part": "test"}
        for (task, method), rate in best.items()
        for seed in arguments.seeds
    ]
    plans += [
        {"task": task, "method": method, "seed": None, "lr": None, "part": "test"}
        for task in settings
        for method in UNTRAINED
    ]
    return compute(cells, settings, plans)


def tune(
    cells: Cells, settings: Mapping[str, TaskSetting], methods: Sequence[str], rates: Sequence[float]
) -> dict[tuple[str, str], float]:
    """Return the best learning rate of each task and method; one that is best with the highest is tried with more."""
    tried = {(task, method): sorted(rates) for task in settings for method in methods}
    while True:
        plans = [
            {"task": task, "method": method, "seed": _TUNING_SEED, "lr": rate, "part": "dev"}
            for (task, method), own in tried.items()
            for rate in own
        ]
        tuned = compute(cells, settings, plans)
        best = {
            (task, method): best_rate(
                settings[task], [one for one in tuned if (one["task"], one["method"]) == (task, method)]
            )
            for task, method in tried
        }
        highest = [key for key, rate in best.items() if rate == tried[key][-1]]
        if not highest:
            return best
        for key in highest:
            tried[key].append(next_rate(best[key]))


def next_rate(rate: float) -> float:
    """Return the next of 1, 3, 10, 30, ..."""
    digit, _, power = f"{rate:.0e}".partition("e")
    return float(f"3e{power}") if digit == "1" else float(f"1e{int(power) + 1}")


def compute(cells: Cells, settings: Mapping[str, TaskSetting], plans: Sequence[Plan]) -> list[Result]:
    """Return the results of all plans, each with its plan."""
    named = {cell_name(settings[plan["task"]], plan): plan for plan in plans}
    found = cells.compute(named, lambda name: result_of(settings[named[name]["task"]], named[name]))
    return [dict(named[name]) | result for name, result in found.items()]


def cell_name(setting: TaskSetting, plan: Plan) -> str:
    """Return a name that changes with anything that changes the result."""
    asked = setting.asked(plan["part"]).values()
    objective = {} if plan["method"] in UNTRAINED else setting.objective(plan)
    settings = setting.recipe.model_dump(mode="json", include={"prepare", "distill"})
    del settings["distill"]["objective"]  # a rival has its own
    rows = [[questions.sha256, [row.line for row in questions.rows]] for questions in asked]
    whole = json.dumps([settings, objective, dict(plan), rows], sort_keys=True)
    digest = hashlib.sha256(whole.encode()).hexdigest()[:10]
    return f"{plan['task']}/{plan['method']}-{plan['part']}-{plan['seed']}-{digest}"


def result_of(setting: TaskSetting, plan: Plan) -> Result:
    """Return what a model scores on each row, after its training if it has one, or why that ended before its time."""
    print(f"{plan['task']}: {plan['method']}, seed {plan['seed']}, {plan['part']}", file=sys.stderr)
    with tempfile.TemporaryDirectory() as scratch:
        model, seconds = setting.folder / "warm", None
        if plan["method"] == "teacher":
            model = setting.folder / "prepared" / "teacher"
        elif plan["method"] not in UNTRAINED:
            model = Path(scratch) / "student"
            try:
                seconds = train(setting, plan, model)
            except DistillError as exc:
                return {"rows": {}, "failure": str(exc), "seconds": None}
        rows = {
            split: judge(setting, model, questions, Path(scratch) / split)
            for split, questions in setting.asked(plan["part"]).items()
        }
    trained_on = {"cpu": describe_machine()["cpu"], "device": describe_device(choose_device("auto"))}
    return {"rows": rows, "failure": None, "seconds": seconds, "trained_on": trained_on}


def train(setting: TaskSetting, plan: Plan, student: Path) -> float:
    """Train a method from the shared warm start, write its student, and return the seconds of its steps."""
    from ammd.distill.settings import DistillSettings
    from ammd.distill.training import Training

    shared = setting.recipe.distill.model_dump()
    settings = DistillSettings.model_validate(
        shared | {"objective": setting.objective(plan), "seed": plan["seed"]}
    )
    curves = student.with_suffix(".jsonl")
    training = Training(
        prepared=setting.folder / "prepared",
        student=setting.folder / "warm",
        settings=settings,
        curves=curves,
    )
    training.skip_texts(settings.warm.steps)
    training.second(settings.objective)
    training.save(student)
    return float(json.loads(curves.read_text(encoding="utf-8").splitlines()[-1])["seconds"])


def judge(setting: TaskSetting, model: Path, questions: TaskQuestions, answers: Path) -> list[dict[str, Any]]:
    """Return what each row adds to the task's metrics."""
    with progress("answers", questions.jobs) as report:
        scores = score_task(
            ArtifactRef(name="student", path=model),
            read_model_file(model),
            questions,
            folder=answers,
            report=report,
        )
    kept = {"row", "seed", *(field for metric in setting.metrics for field in metric.of)}
    return [{key: value for key, value in row.items() if key in kept} for row in scores.rows]


def best_rate(setting: TaskSetting, tuned: Sequence[Result]) -> float:
    """Return the learning rate after which a method's student is best by the task's first metric."""
    first = setting.metrics[0]
    sign = 1 if first.higher_is_better else -1

    def worth(one: Result) -> float:
        if one["failure"]:
            return -math.inf
        return sign * float(summarize(setting.kind, one["rows"]["dev"])[first.key]["value"])

    return float(max(tuned, key=worth)["lr"])


def rows_of(task: str, setting: TaskSetting, results: Sequence[Result]) -> Iterator[dict[str, Any]]:
    """Yield one flat row for each method, split, seed and metric, then AMMD minus each other method."""
    by_method: dict[str, list[Result]] = {}
    for one in results:
        if one["task"] == task:
            by_method.setdefault(one["method"], []).append(one)
    for method, cells in by_method.items():
        for one in cells:
            named = {"task": task, "method": method, **{key: one[key] for key in ("seed", "lr", "seconds")}}
            if one["failure"]:
                yield named | {"metric": "failure", "value": one["failure"]}
            for split, rows in one["rows"].items():
                for metric, found in summarize(setting.kind, rows).items():
                    yield named | {"split": split, "metric": metric, **found}
    for method in [one for one in by_method if one not in (REFERENCE, *UNTRAINED)]:
        for split in setting.judged:
            whole = {one: pooled(by_method[one], split) for one in (method, REFERENCE)}
            for metric in setting.metrics:
                found = compare_metric(metric, whole[method], whole[REFERENCE])
                if found is not None:
                    yield {
                        "task": task,
                        "split": split,
                        "method": REFERENCE,
                        "minus": method,
                        "metric": metric.key,
                        "difference": found.second - found.first,
                        "low": found.low,
                        "high": found.high,
                        "seeds": len(by_method[method]),
                    }


def pooled(cells: Sequence[Result], split: str) -> list[dict[str, Any]]:
    """Return a split's rows of all seeds of training, each seed of sampling within it one of its own."""
    return [
        row | {"seed": f"{one['seed']}/{row['seed']}"} for one in cells for row in one["rows"].get(split, ())
    ]


if __name__ == "__main__":
    run(main)
