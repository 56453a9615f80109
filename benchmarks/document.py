"""The form of every result file: the machine, the versions, the commit and flat rows."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from ammd.artifact import write_json
from ammd.machine import describe_machine, library_versions

ROOT = Path(__file__).resolve().parent.parent


def publish(name: str, rows: list[dict[str, Any]], **more: object) -> None:
    """Write `benchmarks/results/NAME.json` and print it as one JSON line."""
    document = {
        "machine": describe_machine(),
        "versions": library_versions(),
        "revision": revision(),
        **more,
        "rows": rows,
    }
    path = ROOT / "benchmarks" / "results" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, document)
    print(json.dumps(document))


def kept(name: str, column: str, *values: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the rows and `settings` of a result file that are of none of `values`: what other calls have measured."""
    path = ROOT / "benchmarks" / "results" / f"{name}.json"
    if not path.is_file():
        return [], {}
    document = json.loads(path.read_text(encoding="utf-8"))
    rows = [row for row in document["rows"] if row[column] not in values]
    return rows, {other: facts for other, facts in document["settings"].items() if other not in values}


def revision() -> str | None:
    """Return the commit that was measured; None outside a repository."""
    command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None
