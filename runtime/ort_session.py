"""onnxruntime's library and its sessions, opened alike for every kind of graph."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ammd.errors import EngineError

if TYPE_CHECKING:
    from .engine import Logits


def load_library() -> Any:
    """Return onnxruntime.

    Raises:
        EngineError: It is not installed, or cannot be loaded.
    """
    try:
        import onnxruntime
    except (ImportError, OSError) as exc:
        raise EngineError(f"onnxruntime cannot be used: {exc}", hint="pip install onnxruntime") from exc
    return onnxruntime


def library_failures() -> tuple[type[Exception], ...]:
    """Return what onnxruntime raises: a class for each status, with no base of its own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    found = [value for value in vars(state).values() if isinstance(value, type)]
    return (*(kind for kind in found if issubclass(kind, Exception)), RuntimeError, ValueError, OSError)


def open_session(library: Any, graph: Path, *, threads: int) -> Any:
    """Load a graph.

    Raises:
        EngineError: onnxruntime cannot.
    """
    options = library.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = library.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.enable_mem_pattern = False
    options.enable_cpu_mem_arena = True
    options.log_severity_level = 3  # errors: they come back as exceptions too
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    try:
        return library.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    except library_failures() as exc:
        raise EngineError(f"onnxruntime cannot load `{graph}`: {one_line(exc)}", path=str(graph)) from exc


SESSION_SETTINGS = {
    "inter_op_threads": 1,
    "spinning": True,
    "graph_optimization": "all",
    "memory_arena": True,
    "memory_pattern": False,
    "weight_prepacking": True,
}
"""What `open_session` sets, as an engine tells it."""


def check_tokens(token_ids: Sequence[int], *, vocab_size: int) -> None:
    """Refuse what no row stands for: the lookup of a quantized table does not, and reads what lies elsewhere.

    Raises:
        EngineError: A token is outside the vocabulary.
    """
    for token_id in (min(token_ids), max(token_ids)):
        if not 0 <= token_id < vocab_size:
            raise EngineError(f"token {token_id} is outside the vocabulary of {vocab_size}")


def check_rows(rows: Logits, *, vocab_size: int) -> None:
    """Refuse logits [T, V] of another vocabulary than the folder's configuration names.

    Raises:
        EngineError: They are.
    """
    if rows.shape[-1] != vocab_size:
        raise EngineError(
            f"the graph gives logits of {rows.shape[-1]} tokens, its configuration names {vocab_size}",
            hint="the configuration belongs to another model",
            expected=vocab_size,
            found=rows.shape[-1],
        )


def one_line(exc: BaseException) -> str:
    """Return an exception's words without line breaks."""
    return " ".join(str(exc).split())
