"""How long a report takes and how large it is: `python benchmarks/report.py RUN` takes a finished run's folder.

Of that run, and of 50 that are it with other numbers: each with its own summary, curves and answers on disk, so that
reading them counts. Fresh processes in turn, the command as a user types it; libraries' files are in the page cache.
"""

from __future__ import annotations

import copy
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from document import publish

RUNS = 50
TIMES = 3
_CODE = "from ammd.pipeline.cli import main; main()"


def main(run: Path) -> None:
    """Measure and publish."""
    rows = []
    with tempfile.TemporaryDirectory() as desk:
        runs = Path(desk, "runs", "copies")
        folders = [copy_run(run, runs / f"{number:08x}", number) for number in range(RUNS)]
        for count in (1, RUNS):
            out = Path(desk, "runs", "report.html") if count > 1 else folders[0] / "report.html"
            for attempt in range(TIMES):
                seconds = report(folders[:count], runs_dir=runs.parent)
                rows.append(
                    {
                        "runs": count,
                        "attempt": attempt,
                        "seconds": round(seconds, 3),
                        "bytes": out.stat().st_size,
                    }
                )
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    models = len(summary["models"]) + len(summary["artifacts"])
    steps = len((run / "distill" / "curves.jsonl").read_text(encoding="utf-8").splitlines())
    publish("report", rows, settings={"models_of_a_run": models, "steps_of_a_run": steps})


def copy_run(run: Path, folder: Path, number: int) -> Path:
    """Make a run like `run` with other numbers in its summary."""
    shutil.copytree(run, folder)
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    other = vary(summary, random.Random(number)) | {"run": f"copies/{folder.name}", "path": str(folder)}
    (folder / "summary.json").write_text(json.dumps(other), encoding="utf-8")
    return folder


def vary(value: Any, chance: random.Random) -> Any:
    """Return a document with every fraction up to a tenth larger or smaller."""
    if isinstance(value, dict):
        return {key: vary(item, chance) for key, item in value.items()}
    if isinstance(value, list):
        return [vary(item, chance) for item in value]
    return value * chance.uniform(0.9, 1.1) if isinstance(value, float) else copy.copy(value)


def report(folders: list[Path], *, runs_dir: Path) -> float:
    """Return the seconds of `ammd report FOLDERS`."""
    command = [sys.executable, "-P", "-c", _CODE, "report", *map(str, folders), "--runs-dir", str(runs_dir)]
    begin = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - begin


if __name__ == "__main__":
    main(Path(sys.argv[1]))
