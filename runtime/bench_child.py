"""One measurement: load a model, read a prompt and decode after it, several times. Runs in a child.

It warms up until passes agree and stops when enough are measured (`stopping`); what else the machine did meanwhile is
told with them (`noise`). The clock is an argument, so that the arithmetic is tested without waiting. What is timed:

- `load_s`: opening the engine, its library's import included
- `ttft_s`: from the prompt as text to the first token's id: tokenize, prefill, choose
- `prefill_s`: the prefill in it, logits of the last position included
- `decode_cpu_s`, `decode_joules`: this process' CPU time, and what the processor used, while it decoded
- `token_s`: each decoded token from the id before it to its own id: decode and choose the likeliest
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ammd.machine import status_bytes

from .artifact_ref import asked_kind
from .energy import joules_between, read_energy
from .engine import Engine, open_engine
from .llama_options import asked_options
from .memory_split import memory_split
from .noise import Noise, between, read_counters
from .stopping import PassPlan, StoppedBy, Times, WarmedUpBy, plan_of, stopped, warmed_up

# Plain prose of this project's own: real tokens, the same for every engine with the same tokenizer.
PARAGRAPH = (
    "Water that falls as rain on the hills runs down in small streams, which meet and grow into a river. "
    "On its way the river carries sand and stones, and it drops them where it becomes slow and wide. "
    "People have built towns on these flat places for thousands of years, because the soil is rich and "
    "boats can land there. In spring, when the snow melts, the river may rise by several metres in one "
    "week, so the old houses stand a little higher than the fields around them. "
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One timed pass over prompt and response."""

    ttft_s: float
    prefill_s: float
    token_s: tuple[float, ...]  # one a decoded token
    decode_cpu_s: float = 0.0  # of all threads
    decode_joules: float | None = None  # of the whole processor; None where it does not tell


@dataclass(frozen=True, slots=True, kw_only=True)
class Passes:
    """All passes of one process."""

    discarded: tuple[Pass, ...]  # of the warm-up
    warmed_up_by: WarmedUpBy
    measured: tuple[Pass, ...]
    stopped_by: StoppedBy
    noise: Noise  # while they were measured


def measure(request: Mapping[str, Any]) -> dict[str, Any]:
    """Measure one model at one thread count. Runs in a child.

    Args:
        request: `path`, `engine`, `threads`, `prompt_tokens`, `decode_tokens`, `repetitions`, `warmup`, and the limits
            of `stopping.plan_of`.

    Raises:
        EngineError: The model cannot be loaded or run.
    """
    clock = time.perf_counter
    idle = status_bytes("VmRSS")
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    started = clock()
    with open_engine(
        Path(request["path"]),
        threads=request["threads"],
        context_tokens=request["prompt_tokens"] + request["decode_tokens"],
        kind=asked_kind(request),
        llama=asked_options(request),
    ) as engine:
        load_s = clock() - started
        text = prompt_text(engine, tokens=request["prompt_tokens"])

        def one_pass() -> Pass:
            return time_pass(
                engine,
                text,
                prompt_tokens=request["prompt_tokens"],
                decode_tokens=request["decode_tokens"],
                clock=clock,
            )

        passes = make_passes(one_pass, plan_of(request), clock=clock)
        return {
            "engine": engine.name,
            "measured_at": now,
            "settings": dict(engine.settings),
            "load_s": load_s,
            **_times(passes.measured),
            "discarded": _times(passes.discarded),
            "warmed_up_by": passes.warmed_up_by.value,
            "stopped_by": passes.stopped_by.value,
            "noise": asdict(passes.noise),
            "idle_rss_bytes": idle,
            **memory_split(),
        }


def make_passes(one_pass: Callable[[], Pass], plan: PassPlan, *, clock: Callable[[], float]) -> Passes:
    """Make passes as `plan` has it; `clock` says how long the measured ones have lasted."""
    discarded: list[Pass] = []
    while (warmed_up_by := warmed_up(_deciding(discarded), plan)) is None:
        discarded.append(one_pass())
    looked = clock()
    before = read_counters()
    started = clock()
    measured: list[Pass] = []
    while (stopped_by := stopped(_deciding(measured), plan, seconds=clock() - started)) is None:
        measured.append(one_pass())
    return Passes(
        discarded=tuple(discarded),
        warmed_up_by=warmed_up_by,
        measured=tuple(measured),
        stopped_by=stopped_by,
        noise=between(before, read_counters(), reading_s=started - looked),
    )


def _deciding(passes: Sequence[Pass]) -> Times:
    """Return the times that have to be steady."""
    return {
        "prefill": [one.prefill_s for one in passes],
        "decode": [sum(one.token_s) for one in passes],
    }


def _times(passes: Sequence[Pass]) -> dict[str, Any]:
    return {
        "ttft_s": [one.ttft_s for one in passes],
        "prefill_s": [one.prefill_s for one in passes],
        "token_s": [list(one.token_s) for one in passes],
        "decode_cpu_s": [one.decode_cpu_s for one in passes],
        "decode_joules": [one.decode_joules for one in passes],
    }


def prompt_text(engine: Engine, *, tokens: int) -> str:
    """Return real text that has at least `tokens` tokens."""
    count = len(engine.tokenize(PARAGRAPH))
    return PARAGRAPH * (tokens // count + 1)


def time_pass(
    engine: Engine, text: str, *, prompt_tokens: int, decode_tokens: int, clock: Callable[[], float]
) -> Pass:
    """Time one prompt and `decode_tokens` tokens after it; an end token does not stop the clock."""
    started = clock()
    token_ids = engine.tokenize(text)[:prompt_tokens]
    tokenized = clock()
    logits = engine.prefill(token_ids)
    prefilled = clock()
    token = int(logits.argmax())
    ttft_s = clock() - started
    token_s = []
    energy, cpu_s = read_energy(), time.process_time()
    now = clock()
    for _ in range(decode_tokens):
        token = int(engine.decode(token).argmax())
        before, now = now, clock()
        token_s.append(now - before)
    return Pass(
        ttft_s=ttft_s,
        prefill_s=prefilled - tokenized,
        token_s=tuple(token_s),
        decode_cpu_s=time.process_time() - cpu_s,
        decode_joules=joules_between(energy, read_energy()),
    )
