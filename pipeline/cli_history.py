"""Commands about the history of runs: list them, and make room."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from click.core import ParameterSource

from ammd.errors import RecipeError

from .cli_options import emit, examples, json_option, runs_option

_SHOWN = 50  # runs in a table that nobody has asked to be longer


@click.group(
    invoke_without_command=True,
    epilog=examples(
        "ammd runs --filter state=finished --filter 'metrics.student.kl<0.6' --sort best.bytes",
        "ammd runs --columns best.rouge_l,distill.objective.kind,versions.torch --json",
    ),
)
@click.option(
    "--filter",
    "filters",
    multiple=True,
    metavar="KEY=VALUE",
    help="Only runs for which it holds; may be repeated. Or `!=`, `~` (contains), `!~`, `<`, `<=`, `>`, `>=`.",
)
@click.option("--sort", metavar="KEY", help="Sort by it, upwards.  [default: the newest run first]")
@click.option("--reverse", is_flag=True, help="The other way round.")
@click.option(
    "--limit",
    type=click.IntRange(0),
    metavar="N",
    help=f"At most so many runs; 0 is all.  [default: {_SHOWN} in the table, all with `--json`]",
)
@click.option("--columns", metavar="KEY,…", help="What to tell of each run, in the place of the usual.")
@runs_option
@json_option
@click.pass_context
def runs(
    ctx: click.Context,
    filters: tuple[str, ...],
    sort: str | None,
    reverse: bool,
    limit: int | None,
    columns: str | None,
    runs_dir: Path,
    as_json: bool,
) -> None:
    """List runs from the history, also failed, killed and pruned ones.

    A KEY is one of a recipe (`distill.objective.kind`), `metrics.MODEL.NUMBER`, `best.NUMBER`, `costs.NUMBER`,
    `stages.STAGE.NUMBER`, `versions.LIBRARY`, `data.NAME`, or `run`, `state`, `started`, `ended`, `stage`,
    `message`, `exit_code`, `stages`, `bytes`; it may be cut short within its last part. The best file is the
    smallest of those whose KL to the teacher is at most a tenth above the lowest.
    """
    if ctx.invoked_subcommand is not None:
        given = [name for name in ctx.params if ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE]
        if given:
            raise click.UsageError(f"options go behind `{ctx.invoked_subcommand}`", ctx)
        return
    from .runs_list import list_runs
    from .runs_table import runs_table

    shown = limit if limit is not None or as_json else _SHOWN
    document = list_runs(
        runs_dir,
        filters=filters,
        sort=sort,
        reverse=reverse,
        limit=shown or None,
        columns=None if columns is None else [key.strip() for key in columns.split(",")],
    )
    emit(document, lambda: [runs_table(document)], as_json=as_json)
    if (left := document["total"] - len(document["runs"])) and not as_json:
        click.echo(f"{left:,} more; `--limit 0` shows all", err=True)


@runs.command(
    epilog=examples(
        "ammd runs prune --keep 5 --older-than 30d", "ammd runs prune --unfinished --dry-run --json"
    )
)
@click.argument("named", metavar="[RUN]...", nargs=-1)
@click.option(
    "--keep", type=click.IntRange(0), metavar="N", help="Leave the N newest runs of each recipe's name."
)
@click.option("--older-than", metavar="AGE", help="Only runs that began so long ago: `12h`, `30d`, `4w`.")
@click.option("--unfinished", is_flag=True, help="Only runs that are not finished.")
@click.option(
    "--snapshots",
    is_flag=True,
    help="Only what cut-off stages left in finished runs: snapshots of a training, half-written files. The runs stay.",
)
@click.option("--dry-run", is_flag=True, help="Show what would go and stop.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@runs_option
@json_option
def prune(
    named: tuple[str, ...],
    keep: int | None,
    older_than: str | None,
    unfinished: bool,
    snapshots: bool,
    dry_run: bool,
    yes: bool,
    runs_dir: Path,
    as_json: bool,
) -> None:
    """Remove folders of runs, or what is left over in them.

    A run goes if it meets every rule given; named RUNs go, as far as they do. It is shown first what would go and what
    that frees: files that runs share free nothing until the last of those goes. A run in which a process works, or for
    which a reference stands, stays. `ammd runs` still tells of what was pruned.
    """
    from .prune import Rules, document_of, plan_prune, prune_runs, read_age
    from .runs_table import prune_table

    rules = Rules(
        runs=named,
        keep=keep,
        older_than=None if older_than is None else read_age(older_than),
        unfinished=unfinished,
        snapshots=snapshots,
    )
    plan = plan_prune(runs_dir, rules)
    document = document_of(plan, removed=())
    for entry in document["kept"]:
        click.echo(f"{entry['run']} stays: {entry['because']}", err=True)
    if not as_json:
        emit(document, lambda: [prune_table(document, path=runs_dir)], as_json=False)
    if plan.doomed and not dry_run:
        if not yes:
            _confirm(as_json=as_json)
        document = document_of(plan, removed=prune_runs(runs_dir, plan))
        click.echo(f"{document['freed_bytes'] / 2**20:,.1f} MiB freed", err=True)
    if as_json:
        emit(document, list, as_json=True)


def _confirm(*, as_json: bool) -> None:
    """Ask whether to go on.

    Raises:
        RecipeError: There is nobody to ask.
        click.exceptions.Exit: The answer is no.
    """
    if as_json or not sys.stdin.isatty():
        raise RecipeError(
            "nothing is removed: there is nobody to ask", hint="`--yes` removes, `--dry-run` only shows"
        )
    if not click.confirm("Remove them?", err=True):
        raise click.exceptions.Exit(0)
