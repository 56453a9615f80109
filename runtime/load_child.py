"""One opening of a model, with the evidence of where its bytes came from. Runs in a child."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .artifact_ref import asked_kind
from .bench_child import prompt_text
from .engine import open_engine
from .llama_options import asked_options
from .page_cache import resident_share, storage_counts


def measure(request: Mapping[str, Any]) -> dict[str, Any]:
    """Open a model and wait for its first token.

    Args:
        request: `path`, `engine`, `threads`, `prompt_tokens`, `decode_tokens`, `llama`.

    Returns:
        `load_s`; `first_token_s`, from the beginning of the opening to the first token after the prompt;
        `resident_share` of the files before it; `major_faults` and `read_bytes` from storage until then. None where the
        system does not tell.

    Raises:
        EngineError: The model cannot be loaded or run.
    """
    path = Path(request["path"])
    share = resident_share(path)
    before = storage_counts()
    started = time.perf_counter()
    with open_engine(
        path,
        threads=request["threads"],
        context_tokens=request["prompt_tokens"] + request["decode_tokens"],
        kind=asked_kind(request),
        llama=asked_options(request),
    ) as engine:
        load_s = time.perf_counter() - started
        token_ids = engine.tokenize(prompt_text(engine, tokens=request["prompt_tokens"]))
        engine.prefill(token_ids[: request["prompt_tokens"]]).argmax()
        first_token_s = time.perf_counter() - started
        after = storage_counts()
    return {
        "load_s": load_s,
        "first_token_s": first_token_s,
        "resident_share": share,
        "major_faults": after[0] - before[0] if before and after else None,
        "read_bytes": after[1] - before[1] if before and after else None,
    }
