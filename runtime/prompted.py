"""What a model says to chats that are given as text. Runs in a child: checkpoints in a batch, files one by one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .answers import answer_of, greedy_response
from .artifact_ref import EngineKind, choose_kind
from .engine import open_engine


def answer_chats(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the likeliest answer to each chat. Runs in a child.

    Args:
        request: `path`, `chats` as lists of messages, `max_tokens`, `threads`.

    Returns:
        `answers`, each with `ids`, `text` and `ended`.

    Raises:
        EngineError: The model cannot be loaded or run, or has no chat template.
    """
    path, limit = Path(request["path"]), request["max_tokens"]
    with open_engine(path, threads=request["threads"], context_tokens=1) as engine:
        prompts = [engine.tokenize(engine.render_chat(chat)) for chat in request["chats"]]
        if choose_kind(path, None) is EngineKind.TORCH:
            found = _in_a_batch(engine, prompts, limit)
            return {"answers": [answer_of(engine, ids) for ids in found]}
    room = max(map(len, prompts)) + limit
    with open_engine(path, threads=request["threads"], context_tokens=room) as engine:
        return {"answers": [answer_of(engine, greedy_response(engine, ids, limit)) for ids in prompts]}


def _in_a_batch(engine: Any, prompts: list[list[int]], limit: int) -> list[list[int]]:
    import torch

    from .torch_batch import greedy_and_sampled_responses

    found, _, _ = greedy_and_sampled_responses(
        engine.model,
        prompts,
        sampled_prompts=0,
        max_new_tokens=limit,
        end_token_ids=engine.end_token_ids,
        generator=torch.Generator(),
    )
    return found
