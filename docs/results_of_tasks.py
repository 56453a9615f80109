"""The section of docs/results.md about language tasks."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from markdown_parts import difference, table

from ammd.runtime.task_scores import METRICS

Row = Mapping[str, Any]
_METRICS = {metric.key: metric for of_kind in METRICS.values() for metric in of_kind}
_SPLITS = {
    "test": "On the test split",
    "unseen": "On other rows of the train split, which nobody was trained on",
}
_DRAWN = " drawn"  # behind the name of a split


def tasks_part(document: Mapping[str, Any]) -> Iterable[str]:
    """Yield how students of each method do at the tasks that they were trained for."""
    machine = document["machine"]
    devices = sorted({str(one["device"]) for one in document["trained_on"] if one["device"] != "cpu"})
    yield "## Language tasks"
    yield (
        "`python benchmarks/tasks.py`: packaged recipes of tasks, with their teachers; the student after a warm start "
        "that all methods\nshare, and after as many steps of each method on the same prompts and right answers, as "
        "`ammd eval --task` judges it. `sft`\nlearns the right answers, the others the teacher. Mean over seeds ± "
        "the standard deviation between them; learning rates out of\n"
        f"{', '.join(f'{rate:g}' for rate in document['rates'])}, and higher where the last is best, "
        "chosen by the first column on other rows. Differences\nwith their 95 % interval over rows and seeds. In bold "
        "what has an interval without 0. AMMD's settings are the recipes'; what its\nforward KL was chosen by stands "
        "at the end. Where a task asks for the likeliest text, texts drawn at temperature 1 are judged\nas well: the "
        "likeliest one shows a student's first choice, the other all that it holds likely.\n"
        f"Trained on {' and '.join(devices) or machine['cpu']}, revision {str(document['revision'])[:7]}."
    )
    for task, facts in document["settings"].items():
        rows = [row for row in document["rows"] if row["task"] == task]
        yield f"### {task}"
        yield _setting(facts, rows)
        for split in facts["questions"]:
            of = [row for row in rows if row.get("split") == split]
            yield f"{_title_of(split)}, {facts['questions'][split]['rows']} rows:"
            yield table(_means(of))
            yield table(_differences(of))


def choices_part(document: Mapping[str, Any]) -> Iterable[str]:
    """Yield what the weight of forward KL in the recipes of tasks was chosen by."""
    yield "### Forward KL beside the game"
    devices = sorted({f"{one['device']} ({one['cpu']})" for one in document["trained_on"]})
    yield (
        "`python benchmarks/task_choices.py`: AMMD of each recipe with forward KL at other weights, on rows that the "
        "tables above do not\njudge (of `strategyqa-t5`, those that choose the learning rates). Mean over seeds ± the "
        f"standard deviation between them.\nTrained on {' and '.join(devices)}, revision "
        f"{str(document['revision'])[:7]}."
    )
    for task, facts in document["settings"].items():
        rows = [row for row in document["rows"] if row["task"] == task and "split" in row]
        asked = next(iter(facts["questions"].values()))["rows"]
        yield f"`{task}`, {asked} rows, {len({row['seed'] for row in rows})} seeds:"
        yield table(_weights(rows))


def _weights(rows: Sequence[Row]) -> Iterable[Sequence[str]]:
    """Yield the head, and one line for each weight and learning rate."""
    measured = list(dict.fromkeys((row["split"], row["metric"]) for row in rows))
    titles = [_title(metric, _DRAWN * split.endswith(_DRAWN)) for split, metric in measured]
    yield ["`kd_weight`", "learning rate", *titles]
    for weight, rate in sorted({(row["kd_weight"], row["lr"]) for row in rows}):
        own = [row for row in rows if (row["kd_weight"], row["lr"]) == (weight, rate)]
        found = [
            [row["value"] for row in own if (row["split"], row["metric"]) == column] for column in measured
        ]
        yield [
            f"{weight:g}",
            f"{rate:g}",
            *(_spread(values, metric) for values, (_, metric) in zip(found, measured, strict=True)),
        ]


def _title_of(split: str) -> str:
    title = _SPLITS[split.removesuffix(_DRAWN)]
    return f"{title}, drawn texts" if split.endswith(_DRAWN) else title


def _setting(facts: Mapping[str, Any], rows: Sequence[Row]) -> str:
    prepare, distill = facts["recipe"]["prepare"], facts["recipe"]["distill"]
    tuning, student = prepare["tuning"], prepare["student"]
    layers = f"{student['layers']} layers"
    if student["encoder_layers"]:
        layers = f"{student['encoder_layers']} encoder and {student['layers']} decoder layers"
    warm, own = distill["warm"]["steps"], distill["objective"]["steps"]
    seeds = {row["seed"] for row in rows if row.get("seed") is not None}
    tuned = f", tuned for {tuning['steps']} steps of {tuning['batch_size']} rows" if tuning else ""
    return (
        f"`{prepare['task']}`: {prepare['max_prompts']} prompts. Teacher: {_name(prepare['teacher'])}{tuned}. Student: "
        f"{layers},\n{warm} steps of warm start and {own} of each method, batches of {distill['batch_size']}, "
        f"{len(seeds)} seeds."
    )


def _name(source: str) -> str:
    return f"`{source.rpartition('/')[2].partition('@')[0]}`"


def _means(rows: Sequence[Row]) -> Iterable[Sequence[str]]:
    """Yield the head, and one line for each method."""
    scores = [row for row in rows if "value" in row and row["metric"] in _METRICS]
    metrics = list(dict.fromkeys(row["metric"] for row in scores))
    yield ["", "learning rate", *map(_title, metrics), "seconds of training"]
    for method in dict.fromkeys(row["method"] for row in scores):
        own = [row for row in scores if row["method"] == method]
        found = [[row["value"] for row in own if row["metric"] == metric] for metric in metrics]
        seconds = [
            row["seconds"] for row in own if row["metric"] == metrics[0] and row["seconds"] is not None
        ]
        yield [
            f"`{method}`",
            "" if own[0]["lr"] is None else f"{own[0]['lr']:g}",
            *(_spread(values, metric) for values, metric in zip(found, metrics, strict=True)),
            f"{statistics.mean(seconds):.0f}" if seconds else "",
        ]


def _differences(rows: Sequence[Row]) -> Iterable[Sequence[str]]:
    """Yield the head, and one line for each other method."""
    pairs = [row for row in rows if "minus" in row]
    metrics = list(dict.fromkeys(row["metric"] for row in pairs))
    yield ["`ammd` minus", *map(_title, metrics)]
    for rival in dict.fromkeys(row["minus"] for row in pairs):
        line = [f"`{rival}`"]
        for metric in metrics:
            (row,) = [one for one in pairs if (one["minus"], one["metric"]) == (rival, metric)]
            line.append(difference(row, digits=2, scale=_scale(metric)))
        yield line


def _spread(values: Sequence[float], metric: str) -> str:
    by = _scale(metric)
    text = f"{by * statistics.mean(values):.2f}"
    return f"{text} ± {by * statistics.stdev(values):.2f}" if len(values) > 1 else text


def _scale(metric: str) -> float:
    return 100.0 if _METRICS[metric].percent else 1.0


def _title(metric: str, of: str = "") -> str:
    return _METRICS[metric].title + of + (", %" if _METRICS[metric].percent else "")
