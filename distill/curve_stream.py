"""The training's curves on their way to trackers, through accelerate's classes for them.

A tracker gets each line of `curves.jsonl` once, under the number of the line: a step counts over all phases, so that a
number is one curve from the first step to the last. What was sent is written down beside; a training that was killed
and goes on makes the same steps again, which are not sent again, and goes on in the tracker's own run. A tracker that
fails is left alone: a missing drawing is no reason to lose a training.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ammd.artifact import write_json

if TYPE_CHECKING:
    from .settings import DistillSettings

log = logging.getLogger("ammd.distill")
_SENT_NAME = "sent.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackInputs:
    """Where curves go."""

    trackers: tuple[str, ...]
    run: str  # `name/id`
    folder: Path  # for what trackers write, and what was sent; outlives a killed stage


class CurveStream:
    """Sends what is new in a file of curves to one tracker."""

    def __init__(self, name: str, inputs: TrackInputs, curves: Path, settings: DistillSettings) -> None:
        """Open the tracker, or the run in it that a killed training has begun."""
        self._name, self._curves = name, curves
        self._sent_path = inputs.folder / f"{name}-{_SENT_NAME}"
        self._facts: dict[str, Any] = {"steps": 0}
        if self._sent_path.is_file():
            self._facts = json.loads(self._sent_path.read_text(encoding="utf-8"))
        self._offset = self._lines = 0
        self._tracker = _open(name, inputs, self._facts)
        if not self._facts["steps"]:
            self._tracker.store_init_configuration(dict(_flat(settings.model_dump(mode="json"))))

    def send(self) -> None:
        """Send the lines that have come since the last call."""
        if not self._curves.exists():  # the training has ended before its first step
            return
        with self._curves.open("rb") as stream:
            stream.seek(self._offset)
            for line in stream:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                self._lines += 1
                if self._lines > self._facts["steps"]:
                    self._tracker.log(_numbers(json.loads(line)), step=self._lines)
                    self._facts["steps"] = self._lines
                    write_json(self._sent_path, self._facts)

    def finish(self) -> None:
        """Let the tracker write the rest."""
        self._tracker.finish()


class CurveStreams:
    """All trackers of a training; those that fail are left out from then on."""

    def __init__(self, inputs: TrackInputs | None, curves: Path, settings: DistillSettings) -> None:
        """Open the trackers; none without `inputs`."""
        self._open: dict[str, CurveStream] = {}
        if inputs is None:
            return
        for name in inputs.trackers:
            with self._forgiven(name):
                self._open[name] = CurveStream(name, inputs, curves, settings)

    def send(self) -> None:
        """Send what is new in the curves."""
        for name, stream in list(self._open.items()):
            with self._forgiven(name):
                stream.send()

    def finish(self) -> None:
        """Send the rest and close."""
        for name, stream in list(self._open.items()):
            with self._forgiven(name):
                stream.send()
                stream.finish()

    @contextmanager
    def _forgiven(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as exc:  # noqa: BLE001 - somebody else's program, with errors of any class
            log.warning("`%s` gets no more curves: %s: %s", name, type(exc).__name__, exc)
            self._open.pop(name, None)


def _open(name: str, inputs: TrackInputs, facts: dict[str, Any]) -> Any:
    """Return accelerate's tracker; `facts` tell of an earlier process, and receive what a later one needs."""
    from accelerate.tracking import MLflowTracker, TensorBoardTracker

    inputs.folder.mkdir(parents=True, exist_ok=True)
    if name == "tensorboard":
        # What an earlier process has written at later steps does not count.
        tracker = TensorBoardTracker(name, inputs.folder, purge_step=facts["steps"] + 1)
    else:
        project, _, _ = inputs.run.partition("/")
        tracker = MLflowTracker(project, run_name=inputs.run, run_id=facts.get("run_id"))
    if hasattr(tracker, "start"):  # since accelerate 1.11; before, making it was enough
        tracker.start()
    if name == "mlflow":
        facts["run_id"] = tracker.tracker.info.run_id
    return tracker


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """Return what can be drawn of a line; the step is the line's own number."""
    return {
        key: float(value)
        for key, value in row.items()
        if key != "step" and isinstance(value, int | float | bool)
    }


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str | int | float | bool]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif value is not None:
            yield f"{prefix}{key}", value if isinstance(value, str | int | float | bool) else str(value)
