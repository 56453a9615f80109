"""Commands about whole runs: make one, make its student only, and look at finished ones."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ammd.errors import INTERRUPTED

from .cli_compare import compare
from .cli_history import runs
from .cli_options import (
    data_option,
    emit,
    examples,
    json_option,
    runs_option,
    screen_options,
    set_option,
    sweep_options,
)

if TYPE_CHECKING:
    from .sweep import Sweep

_RECIPE = click.argument("recipe", required=False, type=click.Path(path_type=Path))
_DRY_RUN = click.option(
    "--dry-run", is_flag=True, help="Print the resolved recipe as TOML, or the plan of a sweep, and stop."
)
_NO_WAIT = click.option(
    "--no-wait",
    is_flag=True,
    help="Refuse where another `ammd` works on the same run, as a sweep does, instead of waiting for it.",
)


@click.command(
    epilog=examples(
        "ammd run scitldr --data ../shared/data --set distill.seed=1 --json > run.json",
        "ammd run my.toml --set 'seed=[0,1,2]' --jobs 2 --memory '12 GB' --sort gguf-q4_k_m.rouge_l",
    )
)
@_RECIPE
@data_option
@set_option
@_DRY_RUN
@_NO_WAIT
@sweep_options
@runs_option
@json_option
@screen_options
def run(recipe: Path | None, **options: Any) -> None:
    """Make everything RECIPE describes.

    Student, files, proofs, numbers, report. RECIPE is a TOML file or the name of a packaged recipe (docs/tasks.md);
    without one the quickstart runs. What an earlier run has made from the same settings and inputs is kept, so
    running again continues or ends at once. Another `ammd` that works on the same run is waited for.

    A recipe that lists values where one belongs is a sweep: all combinations run, the stages that they share once,
    and the exit code is the highest of any run.
    """
    _run(recipe, until="report", **options)


@click.command(epilog=examples("ammd distill", "ammd distill my.toml --dry-run"))
@_RECIPE
@data_option
@set_option
@_DRY_RUN
@_NO_WAIT
@sweep_options
@runs_option
@json_option
@screen_options
def distill(recipe: Path | None, **options: Any) -> None:
    """Make the student of RECIPE and stop.

    `ammd run` with the same recipe goes on from there.
    """
    _run(recipe, until="distill", **options)


@click.command(epilog=examples("ammd watch", "ammd watch quickstart/3f9a01c2 --once --json"))
@click.argument("run", required=False)
@click.option("--once", is_flag=True, help="Print how it is now and stop.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON documents, one a line at each change.")
@runs_option
def watch(run: str | None, once: bool, as_json: bool, runs_dir: Path) -> None:
    """Follow a RUN from another terminal or machine.

    Stage, losses, distances, speed, memory and time left, until it ends; the exit code is then the run's own.
    Another machine needs only to share the run's folder.
    RUN is a run's folder, NAME/ID, the beginning of an ID, or a NAME that has one run; without it, the run that
    was last at work.
    """
    from .runs import find_run, newest_run
    from .watch import watch_run

    folder = find_run(run, runs_dir=runs_dir) if run else newest_run(runs_dir)
    try:
        code = watch_run(folder, once=once, as_json=as_json)
    except KeyboardInterrupt:  # the run goes on
        code = INTERRUPTED
    raise click.exceptions.Exit(code)


@click.command(epilog=examples("ammd report quickstart", "ammd report runs/quickstart/* --out all.html"))
@click.argument("named", nargs=-1, required=True, metavar="RUN...")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where the page of several runs goes.  [default: report.html in the folder of all runs]",
)
@runs_option
@json_option
@screen_options
def report(named: tuple[str, ...], out: Path | None, runs_dir: Path, as_json: bool) -> None:
    """Write a finished RUN's report, or one page about several.

    Of one run that is summary.json, report.html and MODEL_CARD.md in its folder; of several, a page with the
    verdict on each, all numbers, what each cost, and how their students answer. RUN is a run's folder, NAME/ID,
    the beginning of an ID, or a NAME that has one run.
    """
    from .report import rebuild_report
    from .runs import find_run
    from .table import reported_table, run_tables

    folders = [find_run(text, runs_dir=runs_dir) for text in dict.fromkeys(named)]
    if len(folders) == 1:
        if out is not None:
            raise click.UsageError("`--out` is for several runs: the page of one lies in its folder")
        summary = rebuild_report(folders[0])
        emit(summary, lambda: run_tables(summary), as_json=as_json)
        _say_where(summary)
        return
    from .run_folder import REPORT_NAME
    from .runs_report import report_runs

    document = report_runs(folders, out=out or runs_dir / REPORT_NAME)
    emit(document, lambda: [reported_table(document)], as_json=as_json)
    click.echo(document["path"], err=True)


@click.command(epilog=examples("ammd doctor", "ammd doctor --json"))
@runs_option
@json_option
def doctor(runs_dir: Path, as_json: bool) -> None:
    """Say what is missing and what to install.

    Exits with 0 if a quickstart can run, else with the code that it would end with.
    """
    from .doctor import examine
    from .table import doctor_table

    document = examine(runs_dir)
    emit(document, lambda: [doctor_table(document)], as_json=as_json)
    sys.exit(document["exit_code"])


@click.command(epilog=examples("ammd devices", "ammd devices --device ssh:pi@raspberrypi --json"))
@click.option(
    "--device",
    "named",
    multiple=True,
    metavar="TARGET",
    help="Ask `ssh:USER@HOST[:PORT]` or `adb:SERIAL` too; may be repeated.",
)
@json_option
def devices(named: tuple[str, ...], as_json: bool) -> None:
    """List this machine, attached phones and named hosts.

    Chip, cores, instructions, memory, system, battery and temperatures of each.
    """
    from .on_device import list_devices

    list_devices(named, as_json=as_json)


def _run(
    recipe: Path | None,
    *,
    overrides: tuple[str, ...],
    data: Path | None,
    dry_run: bool,
    no_wait: bool,
    runs_dir: Path,
    as_json: bool,
    until: str,
    **options: Any,
) -> None:
    from .sweep import load_sweep

    if data is not None:
        overrides = (f"data={json.dumps(str(data))}", *overrides)
    sweep = load_sweep(recipe, overrides=overrides)
    if sweep.keys:
        _run_sweep(sweep, dry_run=dry_run, runs_dir=runs_dir, as_json=as_json, until=until, options=options)
        return
    if given := [name for name, value in options.items() if value]:
        raise click.UsageError(f"`--{given[0].replace('_', '-')}` is for sweeps, and no key lists values")
    resolved = sweep.points[0].recipe
    if dry_run:
        from .toml_text import write_toml

        document = resolved.model_dump(mode="json")
        emit_toml_or_json(document, write_toml(document), as_json=as_json)
        return
    from .run import run_recipe
    from .run_checks import check_run
    from .table import run_tables

    summary = run_recipe(resolved, runs_dir=runs_dir, until=until, wait=not no_wait)
    emit(summary, lambda: run_tables(summary), as_json=as_json)
    _say_where(summary)
    check_run(summary)


def _run_sweep(
    sweep: Sweep, *, dry_run: bool, runs_dir: Path, as_json: bool, until: str, options: dict[str, Any]
) -> None:
    from .plan import plan_sweep
    from .sweep_document import check_sweep
    from .sweep_run import run_sweep
    from .sweep_tables import plan_table, sweep_table

    if dry_run:
        plan = plan_sweep(sweep, runs_dir=runs_dir, until=until)
        emit(plan, lambda: [plan_table(plan)], as_json=as_json)
        return
    document = run_sweep(sweep, runs_dir=runs_dir, until=until, **options)
    emit(document, lambda: [sweep_table(document)], as_json=as_json)
    check_sweep(document)


def emit_toml_or_json(document: dict[str, Any], toml: str, *, as_json: bool) -> None:
    """Print a resolved recipe."""
    if as_json:
        emit({"schema": "ammd.recipe/1", **document}, list, as_json=True)
    else:
        click.echo(toml, nl=False)


def _say_where(summary: dict[str, Any]) -> None:
    report_path = Path(summary["path"], "report.html")
    where = report_path if report_path.is_file() else summary["path"]
    click.echo(f"{where}", err=True)


PATH = (run, distill)
LOOKING = (watch, runs, report, compare, doctor, devices)
