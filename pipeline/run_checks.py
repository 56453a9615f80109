"""What a finished run is judged by before it counts as a success: all was measured, and its budget is kept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .bench_cells import cells_of_run, check_measured
from .budget import check_budget


def check_run(summary: Mapping[str, Any]) -> None:
    """Check the document of a run whose stages are all done.

    Raises:
        EngineError: A model could not be measured.
        BudgetExceededError: A number is over its limit.
    """
    folder = Path(summary["path"], "bench")
    check_measured(cells_of_run(summary), hint=f"`ammd run` measures again once `{folder}` is removed")
    check_budget(
        summary["budget"], hint="everything is written; `ammd bundle` takes no file that misses its limits"
    )
