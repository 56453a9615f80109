"""ammd: distill a language model, export it to phone-ready files, prove and measure them.

The functions here are the commands of the command line; docs/api.md describes them. They are loaded when first used,
because this package is the ground floor: words that every stage shares (errors, artifacts, pinned downloads, facts
about the machine), importing none of the stages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import errors

__version__ = "0.1.0"
__all__ = [
    "bench",
    "bundle",
    "compare",
    "errors",
    "evaluate",
    "evaluate_tasks",
    "export_checkpoint",
    "run",
    "verify",
    "verify_bundle",
]

if TYPE_CHECKING:
    from ammd.pipeline.api import (
        bench,
        bundle,
        compare,
        evaluate,
        evaluate_tasks,
        export_checkpoint,
        run,
        verify,
        verify_bundle,
    )
else:  # hidden from type checkers, which would take any name to exist

    def __getattr__(name: str) -> object:
        """Load a function of the pipeline when it is first asked for."""
        if name not in __all__:
            raise AttributeError(f"module `ammd` has no attribute `{name}`")
        from importlib import import_module

        return getattr(import_module("ammd.pipeline.api"), name)

    def __dir__() -> list[str]:
        """Name what is loaded and what can be."""
        return sorted({*globals(), *__all__})
