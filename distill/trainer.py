"""Run a phase, a number of optimizer steps with one set of weights, and keep what it takes to go on from any step."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ammd.machine import release_freed_memory
from ammd.progress import progress

from .bridge import Bridge
from .collapse import CollapseWatch
from .fleet import Fleet
from .loop import Loop
from .phase import Phase
from .policy import Policy
from .snapshots import State

if TYPE_CHECKING:
    from collections.abc import Callable

    from .settings import DistillSettings
    from .supply import Supply

# Up to this length the CPU's plain attention beats its fused one (108 tokens, bfloat16: a backward pass of 1.0 s
# instead of 1.5 s); beyond it, the [T, T] matrices it keeps cost too much memory.
_EAGER_TOKENS = 256
_CLEAR_STEPS = 8  # between two clearings of the heap; each costs about a second


def run_phase(
    phase: Phase,
    *,
    student: Policy,
    teacher: Policy,
    supply: Supply,
    longest_tokens: int,
    settings: DistillSettings,
    curves: Path,
    fleet: Fleet,
    bridge: Bridge | None = None,
    between_steps: Callable[[PhaseState], None] = lambda _state: None,
    start: State | None = None,
) -> None:
    """Train `student` in place for one phase and append a line a step to `curves`.

    Args:
        phase: What to do.
        student: Is changed.
        teacher: Judges the student's texts.
        supply: Gives each step its batches.
        longest_tokens: Of prompt and response together.
        settings: Of the stage.
        curves: Receives one line a step, from the first process.
        fleet: This process and those that train along.
        bridge: Between the tokenizers, where the student's is its own.
        between_steps: Called before the first step and after each with what gives the phase's state on demand.
        start: Such a state of this phase to go on from.

    Raises:
        NonFiniteLossError: The loss or a gradient became infinite or not a number.
        CollapseError: Student or critic degenerated.
        DistillError: The critic cannot start as the settings want.
    """
    for policy in (student, teacher):
        is_eager = policy.device.type == "cpu" and longest_tokens <= _EAGER_TOKENS
        policy.model.set_attn_implementation("eager" if is_eager else "sdpa")
    loop = Loop(phase, student, teacher, settings, fleet, bridge)
    watch = CollapseWatch(learns_tokens=phase.off is not None and phase.off.weights.cross_entropy > 0)
    state = PhaseState(loop=loop, watch=watch, supply=supply)
    if start is not None:
        state.restore(start)
    with (
        loop.rounded.applied(),
        progress(f"distill {phase.name}", phase.steps, silent=not fleet.is_first) as report,
        (curves if fleet.is_first else Path(os.devnull)).open("a", buffering=1, encoding="utf-8") as log,
    ):
        report(state.steps)
        between_steps(state)
        for step in range(state.steps + 1, phase.steps + 1):
            written = supply.generated_tokens
            entry = loop.step(step, *supply.batches(step, student))
            entry = replace(entry, generated_tokens=supply.generated_tokens - written)
            log.write(json.dumps(entry.as_line()) + "\n")
            report(step, entry.summary())
            watch.check(entry)
            state.steps = step
            between_steps(state)
            if step % _CLEAR_STEPS == 0:
                release_freed_memory()


@dataclass(slots=True, kw_only=True)
class PhaseState:
    """What a phase is made of while it runs, and how far it is."""

    loop: Loop
    watch: CollapseWatch
    supply: Supply
    steps: int = 0

    def state(self) -> State:
        """Return all of it."""
        whole = State(facts={"steps": self.steps, "watch": self.watch.facts()})
        whole.put("loop", self.loop.state())
        whole.put("supply", self.supply.state())
        return whole

    def restore(self, state: State) -> None:
        """Take over what `state` returned, in a phase that has just been made."""
        self.steps = state.facts["steps"]
        self.watch.restore(state.facts["watch"])
        self.loop.restore(state.part("loop"))
        self.supply.restore(state.part("supply"))
