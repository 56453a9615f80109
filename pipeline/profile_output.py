"""The output of `ammd bench --profile`: what was measured and what is projected, never in one table or column."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ammd.runtime.artifact_ref import ArtifactRef, EngineKind
from ammd.runtime.profile_document import PROJECTED, UNDER_LIMITS, check_limits, measure_profile
from ammd.runtime.profiles import load_profiles
from ammd.runtime.row_formats import sql_table

from .cli_options import emit
from .profile_tables import profile_tables
from .table import escape, profile_table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ammd.runtime.settings import BenchSettings

_MIB = 2**20


def print_profiles() -> None:
    """Print a table of all profiles."""
    known = load_profiles()
    rows = [
        [
            profile_name,
            profile.device,
            profile.soc,
            " + ".join(f"{one.count} x {one.name} {one.ghz:g}" for one in profile.cores),
            f"{profile.bandwidth_gb_s:g}",
            f"{profile.ram_gb:g}",
            str(profile.threads),
            f"{profile.app_memory_bytes(known.app) / _MIB:.0f}",
        ]
        for profile_name, profile in known.profile.items()
    ]
    headings = ["device", "SoC", "cores, GHz", "GB/s", "RAM\nGiB", "threads", "app\nMiB"]
    emit({}, lambda: [profile_table("profiles", ["profile", *headings], rows)], as_json=False)


def run_profile(
    name: str,
    artifacts: Sequence[Mapping[str, Any]],
    *,
    settings: BenchSettings,
    anchor: str | None,
    form: str,
) -> None:
    """Measure files under a profile's limits, project, and print both.

    Raises:
        AmmdError: What could not be done.
        BudgetExceededError: A file breaks a limit.
    """
    refs = [
        ArtifactRef(
            name=one["name"],
            path=Path(one["path"]),
            engine=EngineKind(one["engine"]) if one["engine"] else None,
        )
        for one in artifacts
    ]
    document = measure_profile(
        refs,
        name,
        prompt_tokens=settings.prompt_tokens,
        decode_tokens=settings.decode_tokens,
        anchor=anchor,
    )
    report_profile(document, form=form)


def report_profile(document: dict[str, Any], *, form: str) -> None:
    """Print a document of `measure_profile`.

    Raises:
        BudgetExceededError: A file breaks a limit; it was printed all the same.
    """
    if form in _FORMATS:
        click.echo(_FORMATS[form](document), nl=False)
    else:
        emit(document, lambda: _tables(document), as_json=form == "json")
    here, asked = document["limits"]["threads_here"], document["limits"]["threads"]
    if here < asked:
        click.echo(f"{here} threads instead of {asked}: this machine has no more", err=True)
    check_limits(document)


def _tables(document: Mapping[str, Any]) -> Iterable[RenderableType]:
    for title, rows in profile_tables(document):
        heads = list(rows[0]) if rows else []
        cells = [[escape(value) for value in row.values()] for row in rows]
        yield profile_table(title, heads, cells)


def _as_markdown(document: Mapping[str, Any]) -> str:
    parts = []
    for title, rows in profile_tables(document):
        lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
        table = "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
        parts.append(f"**{title}**\n\n{table}")
    return "\n".join(parts)


def _rows(document: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    return [*document["under_limits"], *document["projected"]]


def _as_jsonl(document: Mapping[str, Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in _rows(document))


def _as_csv(document: Mapping[str, Any]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list({**UNDER_LIMITS, **PROJECTED}), lineterminator="\n")
    writer.writeheader()
    writer.writerows(_rows(document))
    return text.getvalue()


def _as_sql(document: Mapping[str, Any]) -> str:
    return sql_table("under_limits", UNDER_LIMITS, document["under_limits"]) + sql_table(
        "projected", PROJECTED, document["projected"]
    )


_FORMATS = {"jsonl": _as_jsonl, "csv": _as_csv, "md": _as_markdown, "sql": _as_sql}
