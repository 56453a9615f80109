"""Which of a run's files go into a bundle: those that suit the target, each proven and within its budget."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

from ammd.errors import ParityError, RecipeError
from ammd.export.schemes import Scheme

from .budget import check_budget


class Target(StrEnum):
    """Where a bundle's files are to run."""

    ANDROID = "android"
    IOS = "ios"
    DESKTOP = "desktop"


# Of each group the first that a run has: what phones have the memory and kernels for, GGUF and onnxruntime-genai.
_PHONE = (
    (
        Scheme.GGUF_Q4_K_M,
        Scheme.GGUF_MIXED,
        Scheme.GGUF_Q4_K_S,
        Scheme.GGUF_IQ4_XS,
        Scheme.GGUF_IQ4_NL,
        Scheme.GGUF_Q4_0,
    ),
    (Scheme.ONNX_INT4,),
)


def choose(summary: Mapping[str, Any], target: Target, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rows of the artifacts that go in, in the run's order.

    Args:
        summary: Of a finished run.
        target: Decides where `names` is empty.
        names: Of the wanted files, as in tables.

    Raises:
        RecipeError: A name is none of the run's, or nothing in it suits the target.
        ParityError: A file is not proven, or not as it is.
        BudgetExceededError: A file misses its budget.
    """
    rows = {row["name"]: row for row in summary["artifacts"]}
    for name in names:
        if name not in rows:
            near = difflib.get_close_matches(name, rows, n=1, cutoff=0)[0]
            raise RecipeError(
                f"run `{summary['run']}` has no file `{name}`, the nearest is `{near}`",
                hint=f"it has {', '.join(rows)}",
            )
    wanted = set(names or _suitable(target, list(rows)))
    if not wanted:
        raise RecipeError(
            f"run `{summary['run']}` has no file that {target.value} is usually given",
            hint=f"`--files` takes any of {', '.join(rows)}",
        )
    chosen = [row for name, row in rows.items() if name in wanted]
    for row in chosen:
        _check_proof(row)
    verdict = budget_of(summary, wanted)
    check_budget(verdict, hint="`--files` chooses others; a changed `[budget]` judges the run again")
    return chosen


def budget_of(summary: Mapping[str, Any], names: set[str]) -> dict[str, Any] | None:
    """Return the verdict on some of a run's files; None without a budget."""
    if summary["budget"] is None:
        return None
    rows = [row for row in summary["budget"]["rows"] if row["artifact"] in names]
    return {"met": all(row["met"] for row in rows), "rows": rows}


def _suitable(target: Target, names: Sequence[str]) -> list[str]:
    if target is Target.DESKTOP:
        return list(names)
    return [found for group in _PHONE if (found := next((one for one in group if one in names), None))]


def _check_proof(row: Mapping[str, Any]) -> None:
    parity: Mapping[str, Any] = row["parity"] or {}
    if not parity:
        fact = "is not proven"
    elif parity["faults"]:
        fact = f"fails its proof: {parity['faults'][0]}"
    elif parity["sha256"] != row["sha256"]:
        fact = "is not the file that was proven"
    else:
        return
    raise ParityError(
        f"`{row['name']}` {fact}", hint="`ammd run` proves it again once `verify` is removed from its folder"
    )
