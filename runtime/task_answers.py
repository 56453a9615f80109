"""What a model says to the rows of a task. Runs in a child: checkpoints answer in batches, files one by one.

A row's prompt is one message of the user, through the model's own chat template. A choice follows it as a response
does in training: its tokens alone, without an end token. A prompt that does not fit into the model's context beside the
answer loses the middle of its message, where no instruction stands; how many did is counted.

A drawn answer depends on its seed and its row alone: each has random numbers of its own. In a batch a row's logits also
depend on its neighbours, by rounding; so batches are made from the whole task, and one that was cut off is asked again
as a whole.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ammd.artifact import hash_text
from ammd.errors import EngineError
from ammd.task import Task
from ammd.task_data import TaskRow

from .answers import answer_of
from .artifact_ref import EngineKind
from .engine import Engine, open_engine
from .generate import Ends, generate
from .likelihood import score_continuations, score_text
from .sampling import Sampling
from .task_jobs import Job, JobKind, job_of, jobs_of

TEXT_WINDOW_TOKENS = 1024  # of plain text that are read at once, where the model's context has that many
_BATCH_TOKENS = 8192  # of prompts and answers in a batch: 0.4 GB of float32 keys and values of a 135M model
_BATCH_ROWS = 64
_UNLIMITED = 1 << 30  # a context for which no memory is reserved
_SHORTEST_MESSAGE_TOKENS = 2  # one of its beginning and one of its end


def answer_task(request: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Give what a model says to each row, as it comes. Runs in a child.

    Args:
        request: `path`, `engine`, `threads`; `context_limit` of the model or None; `task`; `rows` as prompt,
            references, choices, line; `done`, records of what is there already.

    Yields:
        First `{"engine", "settings", "chat_sha256"}`, then `{"records"}`, each with `job`, `row`, `seed`, `seconds` and
        `text`, `tokens`, `ended`, `shortened`; or `logprobs`, `shortened`; or `nats`, `tokens`, `words`, `bytes`.

    Raises:
        EngineError: The model cannot be loaded or run, has no chat template, or too small a context.
    """
    task = Task.model_validate(request["task"])
    rows = {row["line"]: _row_of(row) for row in request["rows"]}
    done = {job_of(record) for record in request["done"]}
    jobs = jobs_of(task, list(rows.values()))
    kind, limit = EngineKind(request["engine"]), request["context_limit"] or _UNLIMITED
    open_model = partial(open_engine, Path(request["path"]), threads=request["threads"], kind=kind)
    is_torch = kind is EngineKind.TORCH
    engine: Any
    with open_model(context_tokens=limit if is_torch else 1) as engine:
        prompts = _prompts(engine, task, rows, limit) if jobs[0].kind is not JobKind.TEXT else {}
        chat = hash_text(_render(engine, "{prompt}")) if prompts else None
        room = _room(engine, task, rows, prompts, limit)
        asking = _Asking(task=task, rows=rows, prompts=prompts, window_tokens=min(TEXT_WINDOW_TOKENS, limit))
        if is_torch:
            engine.pack()
            yield _about(engine, chat)
            yield from asking.in_batches(engine, jobs, done)
            return
    with open_model(context_tokens=room) as engine:
        yield _about(engine, chat)
        for job in jobs:
            if job not in done:
                yield from asking.ask(engine, [job])


@dataclass(frozen=True, slots=True)
class _Prompt:
    ids: Sequence[int]
    shortened: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asking:
    """What all jobs of a task share."""

    task: Task
    rows: Mapping[int, TaskRow]
    prompts: Mapping[int, _Prompt]
    window_tokens: int

    def in_batches(self, engine: Any, jobs: Sequence[Job], done: set[Job]) -> Iterator[dict[str, Any]]:
        """Give the records of a checkpoint's jobs: prompts in batches of like length, texts one by one."""
        ask = {JobKind.ANSWER: self._answer_batch, JobKind.CHOICES: self._choices_batch}
        for kind in dict.fromkeys(job.kind for job in jobs):
            alike = [job for job in jobs if job.kind is kind]
            if kind is JobKind.TEXT:
                yield from self.ask(engine, [job for job in alike if job not in done])
                continue
            for batch in self._batches(engine, alike):
                todo = [job for job in batch if job not in done]
                if todo:
                    started = time.perf_counter()
                    found = ask[kind](engine, batch)
                    seconds = (time.perf_counter() - started) / len(batch)
                    yield {
                        "records": [
                            self._record(job, one, seconds=seconds)
                            for job, one in zip(batch, found, strict=True)
                            if job in todo
                        ]
                    }

    def ask(self, engine: Engine, jobs: Sequence[Job]) -> Iterator[dict[str, Any]]:
        """Give the record of each job, asked by itself."""
        measure = {JobKind.ANSWER: self._answer, JobKind.CHOICES: self._choices, JobKind.TEXT: self._text}
        for job in jobs:
            started = time.perf_counter()
            found = measure[job.kind](engine, job)
            yield {"records": [self._record(job, found, seconds=time.perf_counter() - started)]}

    def _batches(self, engine: Engine, jobs: Sequence[Job]) -> Iterator[list[Job]]:
        batch: list[Job] = []
        for job in sorted(jobs, key=lambda job: len(self.prompts[job.row].ids)):
            width = len(self.prompts[job.row].ids) + _beside(engine, self.task, self.rows[job.row])
            readings = len(self.rows[job.row].choices) if job.kind is JobKind.CHOICES else 1
            if batch and (len(batch) == _BATCH_ROWS or (len(batch) + 1) * width * readings > _BATCH_TOKENS):
                yield batch
                batch = []
            batch.append(job)
        if batch:
            yield batch

    def _answer_batch(self, engine: Any, batch: Sequence[Job]) -> list[dict[str, Any]]:
        import numpy as np
        import torch

        from ammd.batch_decoding import decode_batch, draw

        generators = [np.random.default_rng(job.draw_seed) for job in batch]

        def choose(logits: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
            uniform = torch.tensor([generators[row].random() for row in rows.tolist()], dtype=torch.float32)
            return draw(logits, temperature=self.task.temperature, uniform=uniform)

        found, _ = decode_batch(
            engine.model,
            [self.prompts[job.row].ids for job in batch],
            max_new_tokens=self.task.response_tokens,
            end_token_ids=engine.end_token_ids,
            choose=choose,
        )
        return [self._said(engine, job, ids) for job, ids in zip(batch, found, strict=True)]

    def _choices_batch(self, engine: Any, batch: Sequence[Job]) -> list[dict[str, Any]]:
        from .torch_batch import response_logprobs

        asked = [
            (self.prompts[job.row].ids, engine.tokenize(choice))
            for job in batch
            for choice in self.rows[job.row].choices
        ]
        logprobs = iter(response_logprobs(engine.model, asked))
        return [
            {
                "logprobs": [next(logprobs) for _ in self.rows[job.row].choices],
                "shortened": self.prompts[job.row].shortened,
            }
            for job in batch
        ]

    def _answer(self, engine: Engine, job: Job) -> dict[str, Any]:
        pieces = generate(
            engine,
            self.prompts[job.row].ids,
            sampling=Sampling(temperature=self.task.temperature, seed=job.draw_seed),
            ends=Ends(max_new_tokens=self.task.response_tokens),
        )
        return self._said(engine, job, [piece.token_id for piece in pieces])

    def _said(self, engine: Engine, job: Job, ids: Sequence[int]) -> dict[str, Any]:
        answer = answer_of(engine, ids)
        return {
            "text": answer["text"],
            "tokens": len(ids),
            "ended": answer["ended"],
            "shortened": self.prompts[job.row].shortened,
        }

    def _choices(self, engine: Engine, job: Job) -> dict[str, Any]:
        prompt = self.prompts[job.row]
        choices = [engine.tokenize(choice) for choice in self.rows[job.row].choices]
        found = score_continuations(engine, prompt.ids, choices)
        return {"logprobs": [one.logprob for one in found], "shortened": prompt.shortened}

    def _text(self, engine: Engine, job: Job) -> dict[str, Any]:
        texts = [
            score_text(
                engine,
                text,
                window_tokens=self.window_tokens,
                stride_tokens=max(1, self.window_tokens // 2),
            )
            for text in self.rows[job.row].references
        ]
        return {
            "nats": sum(text.nats for text in texts),
            "tokens": sum(text.tokens for text in texts),
            "words": sum(text.words for text in texts),
            "bytes": sum(text.bytes for text in texts),
        }

    def _record(self, job: Job, found: Mapping[str, Any], *, seconds: float) -> dict[str, Any]:
        asked = {"job": job.kind.value, "row": job.row, "seed": job.seed}
        return asked | dict(found) | {"seconds": round(seconds, 6)}


def _about(engine: Engine, chat_sha256: str | None) -> dict[str, Any]:
    return {"engine": engine.name, "settings": dict(engine.settings), "chat_sha256": chat_sha256}


def _row_of(row: Mapping[str, Any]) -> TaskRow:
    texts = {key: tuple(row[key]) for key in ("references", "choices")}
    return TaskRow(prompt=row["prompt"], line=row["line"], **texts)


def _prompts(engine: Engine, task: Task, rows: Mapping[int, TaskRow], limit: int) -> dict[int, _Prompt]:
    return {
        line: _fit(engine, row.prompt, room=limit - _beside(engine, task, row)) for line, row in rows.items()
    }


def _beside(engine: Engine, task: Task, row: TaskRow) -> int:
    """Return how many tokens a row needs beside its prompt."""
    return max([task.response_tokens, *(len(engine.tokenize(choice)) for choice in row.choices)])


def _room(
    engine: Engine, task: Task, rows: Mapping[int, TaskRow], prompts: Mapping[int, _Prompt], limit: int
) -> int:
    """Return the context that the longest row needs."""
    if not prompts:
        return min(TEXT_WINDOW_TOKENS, limit)
    return max(len(prompt.ids) + _beside(engine, task, rows[line]) for line, prompt in prompts.items())


def _fit(engine: Engine, text: str, *, room: int) -> _Prompt:
    """Return the rendered message in at most `room` tokens, without its middle where it is longer.

    Raises:
        EngineError: Not even two tokens of it fit.
    """
    ids = engine.tokenize(_render(engine, text))
    if len(ids) <= room:
        return _Prompt(ids, False)
    words = engine.tokenize(text)
    while len(ids) > room:
        kept = len(words) - (len(ids) - room)
        if kept < _SHORTEST_MESSAGE_TOKENS:
            raise EngineError(
                f"the model's context leaves {room} tokens for a prompt, less than its chat template takes",
                hint="ask for shorter answers (`response_tokens` of the task), or take another model",
                room=room,
            )
        words = [*words[: (kept + 1) // 2], *words[-(kept // 2) :]]
        halves = (words[: (kept + 1) // 2], words[(kept + 1) // 2 :])
        ids = engine.tokenize(_render(engine, "".join(map(engine.detokenize, halves))))
    return _Prompt(ids, True)


def _render(engine: Engine, text: str) -> str:
    return engine.render_chat([{"role": "user", "content": text}])
