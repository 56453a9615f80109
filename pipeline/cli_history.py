"""Commands about the history of runs: list them, and make room."""

from __future__ import annotations

from pathlib import Path

import click

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
