"""The command that says whether a model is better than another, and stops a build where it is worse."""

from __future__ import annotations

from pathlib import Path

import click

from .cli_options import emit, examples, json_option, runs_option, screen_options


def _print_templates(
    ctx: click.Context, _parameter: click.Parameter, names: tuple[str, ...]
) -> tuple[str, ...]:
    """Print all packaged templates where `list` is asked for, and end; else return the names."""
    if "list" in names:
        from .template import load_template, template_names

        for name in template_names():
            click.echo(f"{name:18} {load_template(name).description}")
        ctx.exit()
    return names


@click.command(
    epilog=examples(
        "ammd compare 3f9a 77c0",
        "ammd compare --baseline main --max-regression rouge_l=0.02 --json",
    )
)
@click.argument("first", required=False)
@click.argument("second", required=False)
@click.option(
    "--baseline", metavar="RUN", help="Judge FIRST, or else the newest finished run, against this one."
)
@click.option("--gate", is_flag=True, help="End with 7 where the second is worse; `--baseline` says so too.")
@click.option(
    "--max-regression",
    "limits",
    multiple=True,
    metavar="METRIC=VALUE",
    help="How much worse a number may become: in its own unit, or `5%` of the baseline's; may be repeated.",
)
@click.option(
    "--template",
    "templates",
    multiple=True,
    metavar="NAME|FILE",
    help="Judge by what both answer to a test template's prompts instead; may be repeated. `list` prints the packaged.",
    callback=_print_templates,
)
@click.option("--quality-only", is_flag=True, help="Leave out speed and memory, say on another machine.")
@click.option(
    "--samples", type=click.IntRange(0), default=3, show_default=True, help="Answers side by side, a model."
)
@click.option("--set-baseline", metavar="NAME", help="Instead: let NAME stand for the run FIRST from now on.")
@runs_option
@json_option
@screen_options
def compare(
    first: str | None,
    second: str | None,
    baseline: str | None,
    gate: bool,
    limits: tuple[str, ...],
    templates: tuple[str, ...],
    quality_only: bool,
    samples: int,
    set_baseline: str | None,
    runs_dir: Path,
    as_json: bool,
) -> None:
    """Say whether SECOND is better than FIRST.

    Quality on the same held-out prompts with 95 % intervals, prompts won and lost, speed and memory, size, the answers
    that differ most, and the settings that differ. Both are runs (a folder, NAME/ID, the beginning of an ID, a name
    that `--set-baseline` gave) or one model of a run, as `RUN:student` or `RUN:gguf-q8_0`; of whole runs, the student
    and every file that both have are compared. With `--baseline` or `--gate` the exit code is 7 where the whole
    interval of a change is worse than allowed, 6 where prompts, teacher or measurements cannot be compared.
    """
    if set_baseline is not None:
        _set_baseline(set_baseline, first, second, baseline, runs_dir=runs_dir)
        return
    sides = _sides(first, second, baseline)
    from .compare_named import compare_named
    from .compare_tables import compare_tables

    found = compare_named(
        *sides,
        runs_dir=runs_dir,
        limits=limits,
        templates=templates,
        quality_only=quality_only,
        samples=samples,
    )
    emit(found.as_json(), lambda: compare_tables(found), as_json=as_json)
    if gate or baseline:
        found.check()


def _sides(first: str | None, second: str | None, baseline: str | None) -> tuple[str, str | None]:
    """Return what is compared with what; the second is None for the newest run.

    Raises:
        UsageError: Too few or too many are named.
    """
    if baseline is None and first and second:
        return first, second
    if baseline is not None and second is None:
        return baseline, first
    raise click.UsageError("name two runs, or `--baseline RUN` and at most one")


def _set_baseline(
    name: str, first: str | None, second: str | None, baseline: str | None, *, runs_dir: Path
) -> None:
    if first is None or second is not None or baseline is not None:
        raise click.UsageError("`--set-baseline NAME` takes one run and no `--baseline`")
    from .runs import find_run, set_reference

    click.echo(set_reference(name, find_run(first, runs_dir=runs_dir), runs_dir=runs_dir), err=True)
