"""What a user names, compared: two runs or models, by their held-out prompts or by test templates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .compare import SAMPLES, Comparison, compare_runs
from .judged_run import pair_models, read_judged, read_side
from .regression import read_limits
from .runs import newest_finished
from .template import load_template
from .template_compare import compare_by_templates


def compare_named(
    first: str,
    second: str | None = None,
    *,
    runs_dir: Path,
    limits: Sequence[str] = (),
    templates: Sequence[str] = (),
    quality_only: bool = False,
    samples: int = SAMPLES,
) -> Comparison:
    """Compare what two names stand for.

    Args:
        first: The baseline: `RUN` or `RUN:MODEL`.
        second: What is judged; None for the run in `runs_dir` that was finished last.
        runs_dir: Folder of all runs.
        limits: `METRIC=VALUE`, how much worse a number may become.
        templates: Names or files, by which both are judged instead of by their held-out prompts.
        quality_only: Leave out speed and memory.
        samples: How many answers are shown side by side, a model.

    Raises:
        RecipeError: A limit or a template is wrong.
        ArtifactError: A run or model is not there.
        NotComparableError: The prompts or the teacher's texts to them differ.
        EngineError: A model cannot answer a template's prompts.
    """
    allowed = read_limits(limits)
    by = {name: load_template(name) for name in templates}
    old, old_model = read_side(first, runs_dir=runs_dir)
    new, new_model = (
        read_side(second, runs_dir=runs_dir)
        if second
        else (read_judged(newest_finished(runs_dir, but=old.folder)), None)
    )
    pairs = pair_models(old, new, models=(old_model, new_model))
    if by:
        return compare_by_templates(
            old, new, pairs, templates=by, cache=runs_dir / ".answers", samples=samples
        )
    return compare_runs(old, new, pairs, limits=allowed, with_speed=not quality_only, samples=samples)
