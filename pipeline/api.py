"""What `import ammd` offers to a script: the commands as functions, which the command line calls as well.

Each returns the document that the command prints with `--json`, and raises what the command would end with: a class of
`ammd.errors` with the `exit_code`, and a `hint` that speaks of the command's options. Stages run in processes of their
own, so nothing heavy is loaded into the script and no `if __name__ == "__main__"` is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from ammd.errors import AmmdError
from ammd.export.settings import ExportSettings
from ammd.runtime.settings import BenchSettings, EvaluateSettings, VerifySettings
from ammd.task import Split

from .alone import check_recorded, export_to, find_in_run, measure, named, part_of_run
from .any_path import AnyPath, as_path, as_paths
from .api_release import bundle, verify_bundle
from .bench_files import MAX_REGRESSION, bench_files
from .compare import SAMPLES
from .compare_named import compare_named
from .recipe import load_section
from .recipe_document import BUILTIN, Changes, data_file
from .run import run_recipe
from .run_checks import check_run
from .sweep import load_sweep
from .sweep_document import check_sweep
from .sweep_run import run_sweep
from .task_eval import score_tasks

__all__ = [
    "bench",
    "bundle",
    "compare",
    "evaluate",
    "evaluate_tasks",
    "export_checkpoint",
    "run",
    "verify",
    "verify_bundle",
]
Document = dict[str, Any]


def run(
    recipe: AnyPath | None = None,
    *,
    settings: Changes = (),
    runs_dir: AnyPath = "runs",
    until: Literal["distill", "report"] = "report",
    jobs: int = 1,
    memory: str | None = None,
    fail_fast: bool = False,
    sort: str | None = None,
    ray: str | None = None,
) -> Document:
    """Make everything that a recipe describes: student, files, proofs, numbers, report.

    What an earlier run has made from the same settings and inputs is kept. A recipe that lists values where one belongs
    is a sweep (docs/sweeps.md), which the last five arguments are for.

    Args:
        recipe: A TOML file; None takes the packaged quickstart.
        settings: Changed keys, as `{"seed": 1, "distill.warm.lr": 3e-4}`; docs/recipe.md lists all.
        runs_dir: Folder of all runs.
        until: `"distill"` stops when the student is there.
        jobs: Stages of a sweep that are made at once.
        memory: What they may take together, as `"12 GB"`; None takes what is free.
        fail_fast: End a sweep once one of its runs has failed.
        sort: `METRIC` of the student or `MODEL.METRIC`, the best run of a sweep first.
        ray: Address of a Ray cluster whose nodes make a sweep's stages.

    Returns:
        `ammd.run/1`, which is `summary.json` in the folder that its `path` names; of a sweep `ammd.sweep/1`.

    Raises:
        RecipeError: Lists every fault in the recipe.
        AmmdError: What a stage could not do; the stages before it are kept.
        EngineError: A file could not be measured; `error.facts["document"]` has what was returned otherwise.
        BudgetExceededError: A number misses the recipe's budget; `error.facts["document"]` has all, as it has where
            runs of a sweep fail.

    Example:
        summary = ammd.run("mine.toml", settings={"seed": 1, "distill.warm.lr": 3e-4})
        for file in summary["artifacts"]:
            print(file["path"], file["bytes"], file["quality"]["rouge_l"], file["bench"]["decode_tokens_per_s"])
    """
    sweep = load_sweep(as_path(recipe), overrides=settings)
    where: dict[str, Any] = {"runs_dir": Path(runs_dir), "until": until}
    if not sweep.keys:
        summary = run_recipe(sweep.points[0].recipe, **where)
        with _carrying(summary):
            check_run(summary)
        return summary
    document = run_sweep(sweep, **where, jobs=jobs, memory=memory, fail_fast=fail_fast, sort=sort, ray=ray)
    with _carrying(document):
        check_sweep(document)
    return document


def export_checkpoint(
    checkpoint: AnyPath,
    *,
    out: AnyPath | None = None,
    imatrix: AnyPath | None = None,
    force: bool = False,
    settings: Changes = (),
) -> Document:
    """Write a checkpoint as GGUF and ONNX files.

    Args:
        checkpoint: Folder of a model in transformers' form.
        out: Folder to write; None takes `CHECKPOINT-export`.
        imatrix: Importance matrix to quantize with.
        force: Replace an export that is there.
        settings: Changed keys of a recipe's `[export]`, as `{"schemes": ["gguf-q4_k_m"]}`.

    Returns:
        `ammd.export/1`: the folder, and name, path, bytes and sha256 of each file.

    Raises:
        ArtifactError: There is no such checkpoint, or something is in the way.
        ExportError: It cannot be converted.

    Example:
        student = Path(summary["path"], "distill", "student")
        written = ammd.export_checkpoint(student, out="phone", settings={"schemes": ["gguf-q8_0"]})
        file = written["artifacts"][0]["path"]
    """
    source, matrix = Path(checkpoint), as_path(imatrix)
    chosen = load_section(ExportSettings, settings, defaults={"imatrix": {}} if matrix else None)
    folder = Path(out) if out is not None else source.with_name(f"{source.name}-export")
    texts = None
    if chosen.reads_texts and (chosen.mixed or not matrix):
        texts = find_in_run(source, "prepare/train.jsonl", option="--set imatrix.texts=[...]")
    return export_to(folder, checkpoint=source, texts=texts, imatrix=matrix, settings=chosen, force=force)


def verify(
    file: AnyPath,
    *,
    against: AnyPath | None = None,
    heldout: AnyPath | None = None,
    engine: str | None = None,
    settings: Changes = (),
) -> Document:
    """Prove a file against its checkpoint, or look at it by itself where there is none.

    Args:
        file: A GGUF file or an ONNX folder.
        against: Checkpoint that it came from; None takes the run's student.
        heldout: JSONL of prompts; None takes the run's, else the packaged ones.
        engine: That runs the file; None goes by its form.
        settings: Changed keys of a recipe's `[verify]`.

    Returns:
        `ammd.verify/1`, with what was compared under `parity`.

    Raises:
        ArtifactError: The file is missing, or not what was written.
        ParityError: It does not behave as its checkpoint.

    Example:
        try:
            proof = ammd.verify(file, against=student, settings={"greedy_prompts": 2})
        except ammd.errors.ParityError as error:
            sys.exit(f"{error}; {error.hint}")
        print(proof["parity"])
    """
    path = Path(file)
    artifacts = named([path], engine=engine)
    check_recorded(path)
    given = as_path(against)
    checkpoint = named([given])[0]["path"] if given else part_of_run(path, "distill/student")
    texts = (
        as_path(heldout)
        or part_of_run(path, "prepare/heldout.jsonl")
        or data_file(BUILTIN, ("prepare", "heldout"))
    )
    inputs = {
        "checkpoint": str(checkpoint) if checkpoint else None,
        "heldout": str(texts) if checkpoint else None,
        "artifacts": artifacts,
    }
    return measure("verify", settings=load_section(VerifySettings, settings), inputs=inputs)


def evaluate(
    models: AnyPath | Sequence[AnyPath],
    *,
    teacher: AnyPath | None = None,
    heldout: AnyPath | None = None,
    engine: str | None = None,
    settings: Changes = (),
) -> Document:
    """Judge the answers of models: KL to the teacher, ROUGE-L against its text, repetition.

    Args:
        models: Checkpoints and files, one or several.
        teacher: Checkpoint to compare with; None takes the run's.
        heldout: Held-out JSONL of a prepare stage; None takes the run's.
        engine: That runs them; None goes by the form of each.
        settings: Changed keys of a recipe's `[evaluate]`.

    Returns:
        `ammd.evaluate/1`, with the numbers of each model under `quality`.

    Raises:
        RecipeError: The models lie in no run, and teacher or texts were not named.
        EngineError: A model cannot be run.

    Example:
        run = Path(summary["path"])
        judged = ammd.evaluate(
            [student, file], teacher=run / "prepare/teacher", heldout=run / "prepare/heldout.jsonl"
        )
        print({name: numbers["rouge_l"] for name, numbers in judged["quality"].items()})
    """
    paths = as_paths(models)
    inputs = {
        "models": named(paths, engine=engine),
        "teacher": str(teacher or find_in_run(paths[0], "prepare/teacher", option="--teacher")),
        "heldout": str(heldout or find_in_run(paths[0], "prepare/heldout.jsonl", option="--heldout")),
    }
    return measure("evaluate", settings=load_section(EvaluateSettings, settings), inputs=inputs)


def evaluate_tasks(
    models: AnyPath | Sequence[AnyPath],
    *,
    tasks: str | Sequence[str],
    data: AnyPath | None = None,
    split: Split = "test",
    rows: int | None = None,
    out: AnyPath | None = None,
    engine: str | None = None,
) -> Document:
    """Let models answer language tasks and score what they say.

    Answers are kept row by row: an evaluation that was killed goes on, and one that is repeated costs nothing.

    Args:
        models: Checkpoints and files, one or several.
        tasks: Packaged names or paths of .toml files, one or several (docs/tasks.md).
        data: Folder below which the tasks' files lie; None where they come from a hub.
        split: Which rows of the tasks.
        rows: Ask no more than this many, the same ones for every model.
        out: Folder for answers and scores; None keeps the answers in the user's cache.
        engine: That runs the models; None goes by the form of each.

    Returns:
        `ammd.task/1`: under `tasks` what was asked, under `models` each model's numbers with their intervals.

    Raises:
        RecipeError: There is no such task.
        DataError: A task's rows cannot be read.
        ArtifactError: `out` holds the answers of another model or to another version of the task.
        EngineError: A model cannot be run.

    Example:
        scored = ammd.evaluate_tasks([student, file], tasks=["dolly", "strategyqa"], data="data", rows=50)
        for model in scored["models"]:
            print(model["name"], model["tasks"]["dolly"]["metrics"]["rouge_l"])
    """
    return score_tasks(
        as_paths(models),
        tasks=[tasks] if isinstance(tasks, str) else tasks,
        data=as_path(data),
        split=split,
        rows=rows,
        out=as_path(out),
        engine=engine,
    )


def bench(
    files: AnyPath | Sequence[AnyPath],
    *,
    baseline: AnyPath | None = None,
    max_regression: float = MAX_REGRESSION,
    engine: str | None = None,
    settings: Changes = (),
) -> Document:
    """Measure speed and memory of files on this machine.

    Args:
        files: Checkpoints and files, one or several.
        baseline: What an earlier `ammd bench --json` printed, to compare with.
        max_regression: How much worse is allowed, as a fraction.
        engine: That runs them; None goes by the form of each.
        settings: Changed keys of a recipe's `[bench]`.

    Returns:
        `ammd.bench/2`, with the numbers of each model under `bench` and the comparison under `gate`.

    Raises:
        EngineError: A file could not be measured; `error.facts["document"]` has the others.
        NotComparableError: The baseline was measured elsewhere or otherwise.
        BudgetExceededError: A number is worse than allowed; `error.facts["document"]` has all.

    Example:
        baseline = Path("baseline.json")
        if not baseline.exists():
            baseline.write_text(json.dumps(ammd.bench(file)))
        measured = ammd.bench(file, baseline=baseline, max_regression=0.1)
        print([row["verdict"] for row in measured["gate"]["rows"]])
    """
    judged = bench_files(
        as_paths(files),
        settings=load_section(BenchSettings, settings),
        engine=engine,
        baseline=as_path(baseline),
        max_regression=max_regression,
    )
    with _carrying(judged.document):
        judged.check()
    return judged.document


def compare(
    first: AnyPath,
    second: AnyPath | None = None,
    *,
    gate: bool = False,
    limits: Mapping[str, float | str] | None = None,
    templates: Sequence[str] = (),
    quality_only: bool = False,
    samples: int = SAMPLES,
    runs_dir: AnyPath = "runs",
) -> Document:
    """Say whether a run or model is better than another, on the same prompts.

    Args:
        first: The baseline: a run as for `bundle`, a name that stands for one, or one model of it, as RUN:student.
        second: What is judged, named alike; None for the run that was finished last.
        gate: Raise where the second is worse.
        limits: How much worse a number may become, in its own unit or as `"5%"`; None takes the defaults.
        templates: Packaged names or files of test templates, whose prompts both answer instead.
        quality_only: Leave out speed and memory.
        samples: Answers side by side, a model.
        runs_dir: Folder of all runs.

    Returns:
        `ammd.compare/1`, with what moved under `changes`.

    Raises:
        RecipeError: A limit or template is wrong.
        ArtifactError: A run or model is not there.
        NotComparableError: The prompts or the teacher's texts to them differ; with `gate`, also where speed cannot be
            compared, and then `error.facts["document"]` has all.
        BudgetExceededError: With `gate`: a number has become worse; `error.facts["document"]` has all.

    Example:
        student, quantized = f"{summary['path']}:student", f"{summary['path']}:{summary['artifacts'][0]['name']}"
        compared = ammd.compare(student, quantized, limits={"rouge_l": 0.02}, quality_only=True)
        print([(row["metric"], row["change"], row["verdict"]) for row in compared["changes"]])
    """
    found = compare_named(
        str(first),
        None if second is None else str(second),
        runs_dir=Path(runs_dir),
        limits=[f"{metric}={value}" for metric, value in (limits or {}).items()],
        templates=templates,
        quality_only=quality_only,
        samples=samples,
    )
    document = found.as_json()
    if gate:
        with _carrying(document):
            found.check()
    return document


@contextmanager
def _carrying(document: Document) -> Iterator[None]:
    """Give an error about numbers the document that holds them."""
    try:
        yield
    except AmmdError as exc:
        exc.facts["document"] = document
        raise
