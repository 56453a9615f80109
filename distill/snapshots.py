"""Where a training keeps what it needs to go on after it was killed: one snapshot, whole or not at all.

A snapshot is an artifact folder of its own (every byte verified on reading), replaced by the next one in a single
rename. It holds tensors and plain JSON values, no pickled objects. What is derived (models, texts, the order of
batches) is not in it: it is made again from the stage's inputs and its seed, and wound forward.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ammd.artifact import (
    Manifest,
    link_or_copy,
    list_files,
    load_manifest,
    publish,
    remove_partial,
    staging_folder,
)
from ammd.errors import ArtifactError, DistillError

from .shards import for_first, like

log = logging.getLogger("ammd.distill")
EVERY_VARIABLE = "AMMD_SNAPSHOT_SECONDS"
"""Variable with the seconds of training between two snapshots: what a kill may cost. It changes no result."""
_EVERY_S = 300.0  # a snapshot of a 100 M parameter student takes about 3 s
_STATE_NAME = "state"
_TENSORS_NAME = "tensors.safetensors"
_FACTS_NAME = "facts.json"


@dataclass(slots=True)
class State:
    """Tensors and JSON values under dotted names."""

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    def put(self, name: str, part: State) -> None:
        """Add another state under `name`."""
        self.tensors |= {f"{name}.{key}": value for key, value in part.tensors.items()}
        self.facts[name] = part.facts

    def part(self, name: str) -> State:
        """Return what was put under `name`."""
        prefix = f"{name}."
        tensors = {key.removeprefix(prefix): t for key, t in self.tensors.items() if key.startswith(prefix)}
        return State(tensors=tensors, facts=self.facts[name])


class Snapshots:
    """The snapshot of one training in a folder of its own."""

    def __init__(self, folder: Path, *, every_s: float | None = None) -> None:
        """Use `folder`, which need not be there.

        Args:
            folder: Of this training alone.
            every_s: Seconds of training after which a new snapshot is due; None goes by `AMMD_SNAPSHOT_SECONDS`.

        Raises:
            DistillError: The variable is no number of seconds.
        """
        self._folder = folder
        self._every_s = _seconds_between() if every_s is None else every_s
        self._last = time.monotonic()

    @property
    def is_due(self) -> bool:
        """Whether it is time for the next one."""
        return time.monotonic() - self._last >= self._every_s

    def save(self, state: State, *, keep: Mapping[str, Path]) -> None:
        """Replace the snapshot.

        Args:
            state: What cannot be made again.
            keep: Files or folders that the stage has written so far, by the names that `restore_file` knows.

        Raises:
            ArtifactError: The disk is full.
        """
        from safetensors.torch import save_file

        target = self._folder / _STATE_NAME
        with staging_folder(target) as staging:
            try:
                tensors = {key: value.detach().contiguous() for key, value in state.tensors.items()}
                save_file(tensors, staging / _TENSORS_NAME)
                (staging / _FACTS_NAME).write_text(json.dumps(state.facts), encoding="utf-8")
                for name, path in keep.items():
                    _copy(path, staging / name)
            except OSError as exc:
                raise ArtifactError(
                    f"cannot keep the training's state in `{target}`: {exc.strerror}"
                ) from exc
            manifest = Manifest(stage="snapshot", key="", files=list_files(staging))
            publish(staging, target, manifest)
        self._last = time.monotonic()

    def load(self) -> State | None:
        """Return the snapshot; None where there is none or a byte of it is not what it was."""
        from safetensors.torch import load_file

        target = self._folder / _STATE_NAME
        remove_partial(target)
        if not target.is_dir():
            return None
        try:
            load_manifest(target)
        except ArtifactError as exc:
            log.warning("training begins anew, because %s", exc)
            return None
        facts = json.loads((target / _FACTS_NAME).read_text(encoding="utf-8"))
        return State(tensors=load_file(target / _TENSORS_NAME), facts=facts)

    def restore_file(self, name: str, target: Path) -> None:
        """Copy what was kept under `name` to `target`."""
        _copy(self._folder / _STATE_NAME / name, target)


def _seconds_between() -> float:
    text = os.environ.get(EVERY_VARIABLE, "")
    try:
        seconds = float(text) if text else _EVERY_S
    except ValueError:
        seconds = -1.0
    if not seconds >= 0:
        raise DistillError(
            f"`{text}` in {EVERY_VARIABLE} is no number of seconds", hint="write 60, or unset it for 300"
        )
    return seconds


def _copy(source: Path, target: Path) -> None:
    """Copy a file, which may still grow; link the files of a folder, which is finished."""
    if source.is_dir():
        shutil.copytree(source, target, copy_function=link_or_copy, dirs_exist_ok=True)
    else:
        shutil.copyfile(source, target)


def optimizer_state(optimizer: Any) -> State:
    """Return the moments and counters of a torch optimizer, parameters in their order."""
    state = optimizer.state_dict()["state"]
    return State(
        tensors={
            f"{index}.{name}": for_first(value) for index, one in state.items() for name, value in one.items()
        }
    )


def restore_optimizer(optimizer: Any, state: State) -> None:
    """Put them back; learning rates are the schedule's."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in state.tensors.items():
        index, _, name = key.partition(".")
        moments.setdefault(int(index), {})[name] = like(value, parameters[int(index)])
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
