"""The packaged quickstart from nothing: seconds and peak memory of each stage.

    python benchmarks/quickstart.py [RUNS_DIR]

Runs `ammd run --json` in a new folder (or in RUNS_DIR, where finished stages are taken as they are), prints one JSON
line last and writes `benchmarks/results/quickstart.json`. Fetched files (teacher, llama.cpp's source) stay cached.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from document import publish


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
    publish("quickstart", rows)


if __name__ == "__main__":
    main()
