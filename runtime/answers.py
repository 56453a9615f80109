"""What a model says to held-out prompts, and how far its distributions are from the teacher's.

Each function runs in a child of its own: one for checkpoints (torch, batched), one for exported files (their
engine, one sequence at a time). Both give the same record: `answers` and, for checkpoints, `sampled`, as
`{"ids", "text", "ended"}`, and `teacher_texts`, how far the model is from the teacher on each of its texts. Once the
teacher has read all answers, `compare_own_..._texts` says the same of the model's own texts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ammd.conversations import encode_response
from ammd.machine import has_fast_bfloat16

from .artifact_ref import asked_kind
from .distances import load_states, of_engine, of_states, save_states, unembedding_of
from .divergence import HiddenStates, load_hidden_states
from .engine import Engine, open_engine
from .heldout import HeldOut, load_heldout
from .reference import TENSORS_NAME, check_plain_head, save_hidden_states

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def save_teacher(request: Mapping[str, Any]) -> dict[str, Any]:
    """Save the teacher's hidden states on its own held-out text, and return that text as an answer. Runs in a child.

    Args:
        request: `path` of the checkpoint, `heldout`, `folder`, `prompts`, `texts`, `teacher_answer_tokens`, `threads`.

    Returns:
        `answers`: the teacher's text to each prompt, cut where an answer is.
    """
    import torch

    from .torch_engine import TorchEngine

    torch.set_num_threads(request["threads"])
    rows = _rows(request, of_teacher=True)
    with TorchEngine(
        Path(request["path"]), threads=request["threads"], context_tokens=_longest(rows)
    ) as engine:
        save_hidden_states(
            engine.model, rows[: request["texts"]], path=Path(request["folder"]) / TENSORS_NAME
        )
        limit = request["teacher_answer_tokens"]
        return {"answers": [answer_of(engine, row.response_ids[:limit]) for row in rows]}


def measure_checkpoint(request: Mapping[str, Any]) -> dict[str, Any]:
    """Let a checkpoint answer, greedily and sampled, and compare it with the teacher. Runs in a child.

    In float32: in bfloat16 the likeliest of two close tokens is a matter of rounding, and greedy texts part there.

    Args:
        request: `path`, `heldout`, `folder` of the teacher's hidden states; `prompts`, `sampled_prompts`,
            `texts`, `answer_tokens`, `seed`, `threads`; `own_states`, a file to write: the states that predicted the
            first answers; `of_teacher`, whether its tokens are the teacher's where those of the file are not;
            `compares`, whether it has the teacher's tokens, without which there are no `teacher_texts`.
    """
    import torch

    from . import torch_batch
    from .torch_engine import TorchEngine

    rows = _rows(request, of_teacher=request["of_teacher"])
    texts = [
        (row.prompt_ids, row.response_ids) for row in rows[: request["texts"] if request["compares"] else 0]
    ]
    with TorchEngine(
        Path(request["path"]), threads=request["threads"], context_tokens=_longest(rows)
    ) as engine:
        engine.pack()
        check_plain_head(engine.model, rows[0])
        distances: list[dict[str, Any]] = []
        if texts:
            states = dict(torch_batch.response_states(engine.model, texts))
            own = HiddenStates(
                hidden=torch.cat([states[place] for place in range(len(texts))]).numpy(),
                unembedding=unembedding_of(engine.model),
            )
            distances = of_states(own, _teacher(request), [response for _, response in texts])
        greedy, sampled, kept = torch_batch.greedy_and_sampled_responses(
            engine.model,
            [row.prompt_ids for row in rows[: request["prompts"]]],
            sampled_prompts=request["sampled_prompts"],
            max_new_tokens=_answer_tokens(request),
            end_token_ids=engine.end_token_ids,
            generator=torch.Generator().manual_seed(request["seed"]),
            keep_states=len(texts),
        )
        if texts:
            save_states(kept, Path(request["own_states"]))
        return {
            "teacher_texts": distances,
            "answers": [answer_of(engine, ids) for ids in greedy],
            "sampled": [answer_of(engine, ids) for ids in sampled],
        }


def measure_file(request: Mapping[str, Any]) -> dict[str, Any]:
    """Let an exported file answer greedily and compare it with the teacher. Runs in a child.

    Args:
        request: As for `measure_checkpoint`, without `sampled_prompts`, `seed` and `own_states`; `engine`.
    """
    rows = _rows(request, of_teacher=request["of_teacher"])
    room = max(_longest(rows), max(len(row.prompt_ids) for row in rows) + _answer_tokens(request))
    with open_engine(
        Path(request["path"]),
        threads=request["threads"],
        context_tokens=room,
        kind=asked_kind(request),
    ) as engine:
        texts = [(row.prompt_ids, row.response_ids) for row in rows[: request["texts"]]]
        return {
            "teacher_texts": of_engine(engine, _teacher(request), texts) if request["compares"] else [],
            "answers": [
                answer_of(engine, greedy_response(engine, row.prompt_ids, _answer_tokens(request)))
                for row in rows[: request["prompts"]]
            ],
        }


def score_answers(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return how unlikely the teacher finds given answers, and save its states behind some. Runs in a child.

    The network is bfloat16 where the CPU multiplies it: rounding is nothing in a mean over many tokens, and moves a
    divergence of 0.5 nats by less than 0.01.

    Args:
        request: `path` of the teacher, `prompts` as token ids, `answers` {set name: token ids of each
            prompt's answer} where a set may cover only the first prompts, `keep` {set name: file for the hidden states
            that predict the first answers}, `texts`, how many those are, `threads`; `texts_of` {set name: `text` and
            `ended` of each answer} of models with other tokens, which it reads in its own.

    Returns:
        {set name: mean -log p of a token under the teacher, in nats, for each answer; of `texts_of`, -log p of the
        answer a byte, None where it is empty}.
    """
    import torch

    from . import torch_batch
    from .torch_engine import load_model, load_tokenizer

    torch.set_num_threads(request["threads"])
    dtype = torch.bfloat16 if has_fast_bfloat16() else torch.float32
    model = load_model(Path(request["path"]), dtype=dtype)
    scores: dict[str, Any] = {}
    for name, answers in request["answers"].items():
        pairs = list(zip(request["prompts"], answers, strict=False))
        nats = [0.0] * len(pairs)
        kept: dict[int, torch.Tensor] = {}
        for place, states in torch_batch.response_states(model, pairs):
            found = torch_batch.nats_of(model, states, answers[place])
            nats[place] = sum(found) / len(found)
            if name in request["keep"] and place < request["texts"]:
                kept[place] = states.clone()
        if kept:
            save_states([kept[place] for place in sorted(kept)], Path(request["keep"][name]))
        scores[name] = nats
    tokenizer = load_tokenizer(Path(request["path"]))
    for name, answers in request["texts_of"].items():
        pairs = [
            (prompt, _spelled(tokenizer, answer))
            for prompt, answer in zip(request["prompts"], answers, strict=False)
        ]
        totals = {
            place: sum(torch_batch.nats_of(model, states, pairs[place][1]))
            for place, states in torch_batch.response_states(model, pairs)
        }
        sizes = [len(answer["text"].encode()) for answer in answers]
        scores[name] = [totals[place] / size if size else None for place, size in enumerate(sizes)]
    return scores


def _spelled(tokenizer: PreTrainedTokenizerBase, answer: Mapping[str, Any]) -> list[int]:
    """Return the text of an answer in the tokens of another tokenizer, the end included if it has ended."""
    ids = list(encode_response(tokenizer, answer["text"], max_tokens=None))
    return ids if answer["ended"] or len(ids) == 1 else ids[:-1]


def compare_own_checkpoint_texts(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return how far a checkpoint is from the teacher on texts that it wrote. Runs in a child.

    Args:
        request: `path`; `answers` as token ids; `folder` of the teacher's unembedding; `own_states` and
            `teacher_states`, the files with the hidden states that predict the answers.

    Returns:
        `own_texts`, one record a text.
    """
    from .torch_engine import load_model

    own = load_states(
        Path(request["own_states"]), unembedding=unembedding_of(load_model(Path(request["path"])))
    )
    return {"own_texts": of_states(own, _reading_teacher(request), request["answers"])}


def compare_own_file_texts(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the same of an exported file. Runs in a child.

    Args:
        request: As for `compare_own_checkpoint_texts`, without `own_states`; `engine`, `threads`; `prompts` as token
            ids.
    """
    pairs = list(zip(request["prompts"], request["answers"], strict=True))
    with open_engine(
        Path(request["path"]),
        threads=request["threads"],
        context_tokens=max(len(prompt) + len(answer) for prompt, answer in pairs),
        kind=asked_kind(request),
    ) as engine:
        return {"own_texts": of_engine(engine, _reading_teacher(request), pairs)}


def _rows(request: Mapping[str, Any], *, of_teacher: bool) -> tuple[HeldOut, ...]:
    rows = load_heldout(Path(request["heldout"]), limit=max(request["prompts"], request["texts"]))
    return tuple(row.for_teacher for row in rows) if of_teacher else rows


def _answer_tokens(request: Mapping[str, Any]) -> int:
    return int(request["teacher_answer_tokens" if request["of_teacher"] else "answer_tokens"])


def _teacher(request: Mapping[str, Any]) -> HiddenStates:
    """Return the teacher at its own texts."""
    return load_hidden_states(Path(request["folder"]) / TENSORS_NAME)


def _reading_teacher(request: Mapping[str, Any]) -> HiddenStates:
    """Return the teacher at a model's texts."""
    return load_states(Path(request["teacher_states"]), unembedding=_teacher(request).unembedding)


def greedy_response(engine: Engine, prompt_ids: Sequence[int], limit: int) -> list[int]:
    """Return the likeliest response, end token included where the file gave one."""
    from .generate import Ends, generate
    from .sampling import Sampling

    pieces = generate(engine, prompt_ids, sampling=Sampling(), ends=Ends(max_new_tokens=limit))
    return [piece.token_id for piece in pieces]


def answer_of(engine: Engine, ids: Sequence[int]) -> dict[str, Any]:
    """Return a response as it is kept: `ids`, `text`, and whether the model `ended` it."""
    return {
        "ids": list(ids),
        "text": engine.detokenize(ids).strip(),
        "ended": bool(ids) and ids[-1] in engine.end_token_ids,
    }


def _longest(rows: Sequence[HeldOut]) -> int:
    return max(len(row.token_ids) for row in rows)
