"""`ammd eval`: how good models are beside the teacher, or in language tasks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import click

from .cli_options import emit, engine_option, examples, json_option, screen_options, set_option

if TYPE_CHECKING:
    from ammd.task import Split

_PATH = click.Path(path_type=Path)
_OF_TEACHER, _OF_TASKS = "the comparison with a teacher", "`--task`"


@click.command(
    name="eval",
    epilog=examples(
        "ammd eval student-q4_k_m.gguf --teacher teacher --heldout heldout.jsonl",
        "ammd eval student student-q4_k_m.gguf --task dolly --task strategyqa --data data --rows 200",
    ),
)
@click.argument("models", nargs=-1, required=True, type=_PATH)
@click.option("--teacher", type=_PATH, help="Checkpoint to compare with.  [default: the run's]")
@click.option("--heldout", type=_PATH, help="Held-out JSONL of a prepare stage.  [default: the run's]")
@click.option(
    "--task",
    "tasks",
    multiple=True,
    metavar="NAME",
    help="Answer a language task instead, packaged or a .toml file; may be repeated.",
)
@click.option("--data", type=_PATH, metavar="FOLDER", help="Of a task: folder below which its files lie.")
@click.option(
    "--split", metavar="NAME", help="Of a task: train, dev or test, which of its rows.  [default: test]"
)
@click.option(
    "--rows",
    type=click.IntRange(1),
    help="Of a task: ask no more than this many.  [default: the task's own number]",
)
@click.option(
    "--out",
    type=_PATH,
    metavar="FOLDER",
    help="Of a task: write answers and scores there.  [default: answers are kept in the user's cache]",
)
@engine_option
@set_option
@json_option
@screen_options
def evaluate(
    models: tuple[Path, ...],
    teacher: Path | None,
    heldout: Path | None,
    tasks: tuple[str, ...],
    data: Path | None,
    split: str | None,
    rows: int | None,
    out: Path | None,
    engine: str | None,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Judge the answers of MODELS.

    KL to the teacher, ROUGE-L against its text, repetition, on held-out prompts. `--set` takes the keys
    of a recipe's [evaluate] section.

    With `--task`, scores in language tasks with their 95 % intervals. Every answer is kept as soon as it is there: the
    same command goes on where it was killed.
    """
    if tasks:
        _refuse(
            {"--teacher": teacher, "--heldout": heldout, "--set": overrides},
            _OF_TEACHER,
            hint="not of `--task`",
        )
        _score_tasks(models, tasks, data, split, rows, out, engine, as_json=as_json)
        return
    _refuse(
        {"--data": data, "--split": split, "--rows": rows, "--out": out}, _OF_TASKS, hint="which is not given"
    )
    from .api import evaluate as judge
    from .table import facts_table

    document = judge(models, teacher=teacher, heldout=heldout, engine=engine, settings=overrides)
    emit(document, lambda: [facts_table(document["quality"], title="quality")], as_json=as_json)


def _score_tasks(
    models: tuple[Path, ...],
    tasks: tuple[str, ...],
    data: Path | None,
    split: str | None,
    rows: int | None,
    out: Path | None,
    engine: str | None,
    *,
    as_json: bool,
) -> None:
    from .api import evaluate_tasks
    from .table import task_tables

    document = evaluate_tasks(
        models,
        tasks=tasks,
        data=data,
        split=cast("Split", split or "test"),
        rows=rows,
        out=out,
        engine=engine,
    )
    emit(document, lambda: task_tables(document["tasks"], document["models"]), as_json=as_json)
    if out:
        click.echo(document["path"], err=True)


def _refuse(given: dict[str, Any], owner: str, *, hint: str) -> None:
    for option, value in given.items():
        if value:
            raise click.UsageError(f"`{option}` is an option of {owner}, {hint}")
