"""lm-evaluation-harness on our engines, beside its own Hugging Face backend on the checkpoint: the same requests.

    python benchmarks/lm_evaluation.py CHECKPOINT EXPORT --data FOLDER [--work FOLDER] [--threads 1] [--cells N]

EXPORT is a folder with files that come from CHECKPOINT; FOLDER holds `reason-strategyqa/`, `reason-gsm8k/` and
`instruct-dolly/`. Three tasks, one of each kind of request:

- `strategyqa`: all questions, yes or no by likelihood (accuracy);
- `gsm8k`: problems with their solutions as plain text, by rolling log-likelihood (bits per byte);
- `dolly`: prompts answered greedily (share of the answers that are those of the Hugging Face backend).

Rows: task, model, metric, value, its difference from the Hugging Face backend's with a 95 % interval over the task's
rows, the largest and the median difference of a request's log-likelihood in nats, and requests a second of processor
time, with the model loaded and the requests made: with one thread, those of a core that does nothing else. The backend
runs in batches of 1 and of 8. Each model and task is a cell in a process of its own, kept in the work folder, so an
interrupted benchmark goes on; with `--cells N` a call ends after N of them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cells import Cells, Result
from document import publish

from ammd.runtime.bootstrap import paired_interval

REFERENCE = "hf"
_BATCHES = {REFERENCE: 1, "hf in batches of 8": 8}
_SEED = 0  # of the intervals


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A task of the harness over the first rows of a file."""

    file: str
    rows: int
    metric: str
    harness: Mapping[str, Any]


TASKS = {
    "strategyqa": Task(
        file="reason-strategyqa/dev.jsonl",
        rows=229,
        metric="accuracy",
        harness={
            "output_type": "multiple_choice",
            "doc_to_text": "Question: {{prompt}}\nAnswer, yes or no:",
            "doc_to_choice": ["yes", "no"],
            "doc_to_target": "response",
        },
    ),
    "gsm8k": Task(
        file="reason-gsm8k/test.jsonl",
        rows=24,
        metric="bits_per_byte",
        harness={
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{prompt}}\n{{response}}",
            "metric_list": [{"metric": "bits_per_byte"}],
        },
    ),
    "dolly": Task(
        file="instruct-dolly/eval.jsonl",
        rows=16,
        metric="equal_answers",
        harness={
            "output_type": "generate_until",
            "doc_to_text": "{{prompt}}\n",
            "doc_to_target": "",
            "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 24, "do_sample": False},
            "metric_list": [{"metric": "bypass"}],
        },
    ),
}


def main() -> None:
    """Measure what is missing; publish once nothing is."""
    arguments = parse_arguments()
    if arguments.cell:
        task, model, path = arguments.cell
        print(json.dumps(evaluate(TASKS[task], model, path, arguments)))
        return
    models = dict.fromkeys(_BATCHES, arguments.checkpoint)
    models |= {path.name: path for path in (arguments.checkpoint, *files_in(arguments.export))}
    cells = Cells(arguments.work)
    names = [f"{task}/{model}" for task in TASKS for model in models]
    missing = [name for name in names if cells.get(name) is None]
    wanted = missing[: arguments.cells]
    found = cells.compute(wanted, lambda name: in_process(*name.split("/"), models=models))
    if len(wanted) < len(missing):
        print(f"{len(missing) - len(wanted)} of {len(names)} cells are missing", file=sys.stderr)
        return
    found = {name: result for name in names if (result := cells.get(name)) is not None}
    rows = [
        row for task in TASKS for row in rows_of(task, {model: found[f"{task}/{model}"] for model in models})
    ]
    publish("lm_evaluation", rows, settings={"threads": arguments.threads})


def parse_arguments() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("export", type=Path, help="folder with .gguf files and ONNX folders")
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--work", type=Path, default=Path("lm-evaluation-work"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cells", type=int, help="end after so many cells")
    parser.add_argument("--cell", nargs=3, help=argparse.SUPPRESS)
    return parser.parse_args()


def files_in(export: Path) -> list[Path]:
    """Return the models of an export."""
    return [
        *sorted(export.glob("*.gguf")),
        *sorted(path.parent for path in export.glob("*/genai_config.json")),
    ]


def in_process(task: str, model: str, *, models: Mapping[str, Path]) -> Result:
    """Compute a cell in a fresh process: no engine's threads meet another's."""
    print(f"{task}/{model}", file=sys.stderr)
    command = [sys.executable, *sys.argv, "--cell", task, model, str(models[model])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: Result = json.loads(done.stdout.splitlines()[-1])
    return found


def evaluate(task: Task, model: str, path: str, arguments: argparse.Namespace) -> Result:
    """Return the answer to each request of a task, in order, the task's own scores, and the processor's seconds."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    lm = open_model(model, path, threads=arguments.threads)
    answers: list[dict[str, Any]] = []
    seconds = [0.0]
    kind = task.harness["output_type"].replace("multiple_choice", "loglikelihood")
    answer = getattr(lm, kind)

    def recorded(requests: Sequence[Any]) -> Any:
        started = time.process_time()
        found = answer(requests)
        seconds[0] += time.process_time() - started
        answers.extend(
            {
                "row": request.doc_id,
                "text": request.args[-1] if kind != "generate_until" else "",
                "answer": one,
            }
            for request, one in zip(requests, found, strict=True)
        )
        return found

    setattr(lm, kind, recorded)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "rows.jsonl"
        lines = (arguments.data / task.file).read_text(encoding="utf-8").splitlines(keepends=True)
        data.write_text("".join(lines[: task.rows]), encoding="utf-8")
        local = {"data_files": {"test": str(data)}, "cache_dir": folder}
        whole = {"task": "task", "dataset_path": "json", "dataset_kwargs": local, "test_split": "test"}
        found = simple_evaluate(
            model=lm,
            tasks=[whole | dict(task.harness)],
            task_manager=TaskManager(include_defaults=False),
            bootstrap_iters=0,
        )
    samples = sorted(found["samples"]["task"], key=lambda sample: sample["doc_id"])
    return {"seconds": seconds[0], "answers": answers, "right": [sample.get("acc") for sample in samples]}


def open_model(model: str, path: str, *, threads: int) -> Any:
    """Return the harness's own backend, or ours."""
    if model in _BATCHES:
        import torch
        from lm_eval.models.huggingface import HFLM

        torch.set_num_threads(threads)
        return HFLM(pretrained=path, device="cpu", dtype="float32", batch_size=_BATCHES[model])
    from ammd.runtime.lm_eval_model import EngineLM

    return EngineLM(path, threads=threads)


def rows_of(task: str, results: Mapping[str, Result]) -> Iterator[dict[str, Any]]:
    """Yield one flat row for each model."""
    reference = results[REFERENCE]
    for model, result in results.items():
        values, base = (scores(task, one, reference) for one in (result, reference))
        over = None
        if task == "gsm8k":  # a ratio of sums: bits of all texts over bytes of all texts
            over = [[len(one["text"].encode()) for one in reference["answers"]]]
        difference, low, high = paired_interval(
            [values], [base], generator=np.random.default_rng(_SEED), first_over=over, second_over=over
        )
        gaps = [
            abs(nats(one) - nats(other))
            for one, other in zip(result["answers"], reference["answers"], strict=True)
            if task != "dolly"
        ]
        yield {
            "task": task,
            "model": model,
            "metric": TASKS[task].metric,
            "value": sum(values) / (sum(over[0]) if over else len(values)),
            "difference": difference,
            "low": low,
            "high": high,
            "largest_gap_nats": max(gaps, default=None),
            "median_gap_nats": statistics.median(gaps) if gaps else None,
            "requests": len(result["answers"]),
            "requests_per_cpu_s": len(result["answers"]) / result["seconds"],
        }


def scores(task: str, result: Result, reference: Result) -> list[float]:
    """Return what each of a task's rows adds to its metric."""
    if task == "strategyqa":
        return [float(right) for right in result["right"]]
    if task == "gsm8k":
        return [-nats(one) / float(np.log(2)) for one in result["answers"]]
    pairs = zip(result["answers"], reference["answers"], strict=True)
    return [float(one["answer"] == other["answer"]) for one, other in pairs]


def nats(one: Mapping[str, Any]) -> float:
    """Return the log-likelihood that a request was answered with."""
    answer = one["answer"]
    return float(answer[0] if isinstance(answer, list) else answer)


if __name__ == "__main__":
    main()
