from __future__ import annotations

import inspect
import pickle

import pytest

from ammd import errors


def _family() -> list[type[errors.AmmdError]]:
    return [
        kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, errors.AmmdError)
    ]


@pytest.mark.parametrize(
    ("name", "exit_code"),
    [
        ("RecipeError", 2),
        ("ArtifactError", 3),
        ("FetchError", 3),
        ("DistillError", 4),
        ("DataError", 4),
        ("TokenizerMismatchError", 4),
        ("NonFiniteLossError", 4),
        ("ExportError", 5),
        ("ParityError", 5),
        ("EngineError", 6),
        ("NotComparableError", 6),
        ("BudgetExceededError", 7),
    ],
)
def test_exit_code_is_the_documented_one(name: str, exit_code: int) -> None:
    assert getattr(errors, name).exit_code == exit_code


def test_family_is_drawn_whole_at_the_module_head() -> None:
    assert errors.__doc__ is not None
    missing = [kind.__name__ for kind in _family() if kind.__name__ not in errors.__doc__]
    assert missing == []


@pytest.mark.parametrize("kind", _family(), ids=lambda kind: kind.__name__)
def test_error_crosses_a_process_border_whole(kind: type[errors.AmmdError]) -> None:
    error = kind("`x` failed", hint="do y", path="/x", expected=3)
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), copy.hint, copy.facts) == (
        kind,
        "`x` failed",
        "do y",
        {"path": "/x", "expected": 3},
    )


def test_hint_is_empty_by_default() -> None:
    assert errors.AmmdError("x").hint == ""
