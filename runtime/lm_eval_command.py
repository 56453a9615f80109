"""lm-evaluation-harness's own command line on one of our files: its tasks, its options, its results."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from ammd.errors import EngineError, RecipeError
from ammd.progress import ENVIRONMENT

from .artifact_ref import detect_kind


def run_lm_eval(path: Path, arguments: Sequence[str]) -> None:
    """Run `lm-eval run` with the model at `path`; its table goes to standard output, the rest to standard error.

    Args:
        path: A GGUF, an ONNX folder or a checkpoint folder.
        arguments: Options of `lm-eval run`; `--model_args` adds to those of the model.

    Raises:
        ArtifactError: No engine knows what is at `path`.
        RecipeError: The harness refuses its arguments.
        EngineError: The harness is not installed, or the model cannot be loaded or run.
        SystemExit: The harness's own: after `--help`, or an option that it does not know.
    """
    detect_kind(path)  # before the harness has read all its tasks
    if os.environ.get("AMMD_VERBOSE"):
        os.environ.setdefault("LMEVAL_LOG_LEVEL", "DEBUG")
    elif os.environ.get(ENVIRONMENT) == "off":
        os.environ.setdefault("LMEVAL_LOG_LEVEL", "WARNING")
    try:
        from lm_eval.__main__ import cli_evaluate
    except ImportError as exc:
        raise EngineError(
            f"lm-evaluation-harness cannot be used: {exc}", hint="pip install 'ammd[lm-eval]'"
        ) from exc
    import_module(".lm_eval_model", __package__)  # makes `ammd` known
    # As JSON, for the harness divides other text at commas.
    model = ["--model", "ammd", "--model_args", json.dumps({"pretrained": str(path)})]
    sys.argv = ["lm-eval", "run", *model, *arguments]
    try:
        cli_evaluate()
    except (ValueError, FileNotFoundError) as exc:  # of its own arguments: tasks, paths, combinations
        raise RecipeError(
            f"lm-evaluation-harness: {exc}", hint="`lm-eval run --help` lists its options"
        ) from exc
