"""The packaged quickstart from nothing: seconds and peak memory of each stage.

    python benchmarks/quickstart.py [RUNS_DIR]

Runs `ammd run --json` in a new folder (or in RUNS_DIR, where finished stages are taken as they are), prints one JSON
line last and writes `benchmarks/results/quickstart.json`. Fetched files (teacher, llama.cpp's source) stay cached.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from ammd.artifact import write_json
from ammd.machine import describe_machine, library_versions

RESULTS = Path(__file__).parent / "results" / "quickstart.json"


def main() -> None:
    """Run, print and write."""
    with tempfile.TemporaryDirectory(prefix="ammd-quickstart-") as scratch:
        runs_dir = sys.argv[1] if len(sys.argv) > 1 else scratch
        command = [str(Path(sys.executable).with_name("ammd")), "run", "--json", "--runs-dir", runs_dir]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    summary = json.loads(done.stdout)
    rows = [
        {"stage": row["stage"], "seconds": row["seconds"], "peak_rss_bytes": row["peak_rss_bytes"]}
        for row in summary["stages"]
    ]
    rows.append(
        {
            "stage": "all",
            "seconds": round(sum(row["seconds"] for row in rows), 3),
            "peak_rss_bytes": max(row["peak_rss_bytes"] for row in rows),
        }
    )
    document = {
        "machine": describe_machine(),
        "versions": library_versions(),
        "revision": _revision(),
        "rows": rows,
    }
    write_json(RESULTS, document)
    print(json.dumps(document))


def _revision() -> str | None:
    command = ["git", "-C", os.fspath(Path(__file__).parent), "rev-parse", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


if __name__ == "__main__":
    main()
