"""The sections of docs/results.md about runs that are killed and files that are broken."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from markdown_parts import table

Row = Mapping[str, Any]


def crash_part(document: Mapping[str, Any]) -> Iterable[str]:
    """Yield how many runs came to the same end, however they were disturbed."""
    rows: Sequence[Row] = document["rows"]
    machine, settings = document["machine"], document["settings"]
    yield "## Runs that are killed"
    yield (
        "`python benchmarks/crash.py`: a small run of the real stages, undisturbed in "
        f"{document['undisturbed_s']:.0f} s ({machine['cores']} cores of {machine['cpu']},\n"
        f"one thread, beside other work, revision {str(document['revision'])[:7]}). Killed runs are killed up to "
        f"{settings['kills_a_run']} times each, at moments drawn over that\n"
        "time; then `ammd run` again until it ends. Identical means every byte of the trained checkpoints and of the\n"
        "exported files. A full disk counts as clear if it ended in one line and exit code 3, or found room."
    )
    killed = [row for row in rows if row["kind"] == "killed"]
    lines = [
        ["killed in", "kills", "`ammd`", "a process below it", "`ammd` and its stage", "all", "identical"]
    ]
    for stage in dict.fromkeys(row["stage"] for row in killed):
        of = [row for row in killed if row["stage"] == stage]
        by = (sum(row["victim"] == victim for row in of) for victim in settings["victims"])
        lines.append([stage, str(len(of)), *map(str, by), _same(of)])
    lines.append(["all", str(len(killed)), "", "", "", "", f"**{_same(killed)}**"])
    yield table(lines)
    if len(killed) < settings["kills"]:
        wanted = settings["kills"]
        yield f"{len(killed)} of the {wanted} kills that are meant to be measured; the others are still to come."
    others = [row for row in rows if row["kind"] != "killed"]
    lines = [["what else", "runs", "clear", "identical"]]
    for kind in dict.fromkeys(row["kind"] for row in others):
        of = [row for row in others if row["kind"] == kind]
        clear = [row["clear"] for row in of if "clear" in row]
        lines.append([kind, str(len(of)), f"{sum(clear)} of {len(clear)}" if clear else "–", _same(of)])
    if others:
        yield table(lines)


def fuzz_part(document: Mapping[str, Any]) -> Iterable[str]:
    """Yield how many broken files were tried."""
    yield "## Files that are broken"
    yield (
        "`python benchmarks/fuzz.py`: files changed at random, guided by coverage (atheris); a fault is any end but a\n"
        "refusal in words, a file written outside, more than "
        f"{document['limit_s']} s or {document['limit_mib']} MiB. Revision {str(document['revision'])[:7]}."
    )
    lines = [["files", "cases", "seconds", "faults"]]
    for row in document["rows"]:
        lines.append(
            [row["target"], f"{row['cases']:,}", str(row["seconds"]), "yes" if row["fault"] else "none"]
        )
    yield table(lines)


def _same(rows: Sequence[Row]) -> str:
    return f"{sum(row['identical'] for row in rows)} of {len(rows)}"
