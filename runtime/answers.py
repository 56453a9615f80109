"""What a model says to held-out prompts, and how far its distributions are from the teacher's.

Each function runs in a child of its own: one for checkpoints (torch, batched), one for exported files (their
engine, one sequence at a time). Both give the same record: `answers` and, for checkpoints, `sampled`, as
`{"ids", "text", "ended"}`, and the comparison with the teacher under its own field names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ammd.machine import has_fast_bfloat16

from .artifact_ref import asked_kind
from .divergence import compare, load_hidden_states
from .engine import Engine, open_engine
from .heldout import HeldOut, load_heldout
from .reference import TENSORS_NAME, save_hidden_states

if TYPE_CHECKING:
    from .engine import Logits


def save_teacher(request: Mapping[str, Any]) -> dict[str, Any]:
    """Save the teacher's hidden states on its own held-out text. Runs in a child.

    Args:
        request: `path` of the checkpoint, `heldout`, `folder`, `texts`, `threads`.
    """
    import torch

    from .torch_engine import load_model

    torch.set_num_threads(request["threads"])
    rows = load_heldout(Path(request["heldout"]), limit=request["texts"])
    model = load_model(Path(request["path"]))
    save_hidden_states(model, rows, path=Path(request["folder"]) / TENSORS_NAME)
    return {}


def measure_checkpoint(request: Mapping[str, Any]) -> dict[str, Any]:
    """Let a checkpoint answer, greedily and sampled, and compare it with the teacher. Runs in a child.

    In float32: in bfloat16 the likeliest of two close tokens is a matter of rounding, and greedy texts part there.

    Args:
        request: `path`, `heldout`, `folder` of the teacher's hidden states; `prompts`, `sampled_prompts`,
            `texts`, `answer_tokens`, `seed`, `threads`.
    """
    import torch

    from . import torch_batch
    from .torch_engine import TorchEngine

    rows = load_heldout(Path(request["heldout"]), limit=max(request["prompts"], request["texts"]))
    with TorchEngine(
        Path(request["path"]), threads=request["threads"], context_tokens=_longest(rows)
    ) as engine:
        record = _compare_with_teacher(engine, rows[: request["texts"]], request)
        prompts = [row.prompt_ids for row in rows[: request["prompts"]]]
        greedy, sampled = torch_batch.greedy_and_sampled_responses(
            engine.model,
            prompts,
            sampled_prompts=request["sampled_prompts"],
            max_new_tokens=request["answer_tokens"],
            end_token_ids=engine.end_token_ids,
            generator=torch.Generator().manual_seed(request["seed"]),
        )
        return record | {
            "answers": [_answer(engine, ids) for ids in greedy],
            "sampled": [_answer(engine, ids) for ids in sampled],
        }


def measure_file(request: Mapping[str, Any]) -> dict[str, Any]:
    """Let an exported file answer greedily and compare it with the teacher. Runs in a child.

    Args:
        request: As for `measure_checkpoint`, without `sampled_prompts` and `seed`; `engine`.
    """
    rows = load_heldout(Path(request["heldout"]), limit=max(request["prompts"], request["texts"]))
    room = max(_longest(rows), max(len(row.prompt_ids) for row in rows) + request["answer_tokens"])
    with open_engine(
        Path(request["path"]),
        threads=request["threads"],
        context_tokens=room,
        kind=asked_kind(request),
    ) as engine:
        record = _compare_with_teacher(engine, rows[: request["texts"]], request)
        answers = [
            _answer(engine, _greedy(engine, row.prompt_ids, request["answer_tokens"]))
            for row in rows[: request["prompts"]]
        ]
        return record | {"answers": answers}


def score_answers(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return how unlikely the teacher finds given answers. Runs in a child.

    The network is bfloat16 where the CPU multiplies it: rounding is nothing in a mean over many tokens.

    Args:
        request: `path` of the teacher, `prompts` as token ids, `answers` {set name: token ids of each
            prompt's answer} where a set may cover only the first prompts, `threads`.

    Returns:
        {set name: mean -log p of a token under the teacher, in nats; None where all answers are empty}.
    """
    import torch

    from . import torch_batch
    from .torch_engine import load_model

    torch.set_num_threads(request["threads"])
    dtype = torch.bfloat16 if has_fast_bfloat16() else torch.float32
    model = load_model(Path(request["path"]), dtype=dtype)
    scores: dict[str, Any] = {}
    for name, answers in request["answers"].items():
        pairs = [
            (prompt, answer) for prompt, answer in zip(request["prompts"], answers, strict=False) if answer
        ]
        nats = torch_batch.response_nats(model, pairs)
        scores[name] = sum(nats) / len(nats) if nats else None
    return scores


def _compare_with_teacher(
    engine: Engine, rows: Sequence[HeldOut], request: Mapping[str, Any]
) -> dict[str, Any]:
    def logits() -> Iterator[Logits]:
        for row in rows:
            yield from engine.logits(row.token_ids[:-1], start=len(row.prompt_ids) - 1)

    teacher = load_hidden_states(Path(request["folder"]) / TENSORS_NAME)
    targets = [token for row in rows for token in row.response_ids]
    return asdict(compare(teacher, logits(), targets))


def _greedy(engine: Engine, prompt_ids: Sequence[int], limit: int) -> list[int]:
    """Return the likeliest response, end token included where the file gave one."""
    from .generate import Ends, generate
    from .sampling import Sampling

    pieces = generate(engine, prompt_ids, sampling=Sampling(), ends=Ends(max_new_tokens=limit))
    return [piece.token_id for piece in pieces]


def _answer(engine: Engine, ids: Sequence[int]) -> dict[str, Any]:
    return {
        "ids": list(ids),
        "text": engine.detokenize(ids).strip(),
        "ended": bool(ids) and ids[-1] in engine.end_token_ids,
    }


def _longest(rows: Sequence[HeldOut]) -> int:
    return max(len(row.token_ids) for row in rows)
